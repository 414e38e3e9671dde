"""The families, by the names that files and reports use."""

from .base import Adapter
from .full import Full, FullConfig
from .lidb import LiDB, LiDBConfig
from .lora import LoRA, LoRAConfig
from .para import PaRa, PaRaConfig

FAMILIES: dict[str, type[Adapter]] = {family.family: family for family in (LoRA, LiDB, PaRa, Full)}

__all__ = [
    "FAMILIES", "Adapter", "Full", "FullConfig", "LiDB", "LiDBConfig", "LoRA", "LoRAConfig", "PaRa", "PaRaConfig",
]  # fmt: skip
