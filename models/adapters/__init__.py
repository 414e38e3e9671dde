"""The families of adapters, by the names that files and reports use."""

from .base import AdapterLayer
from .full.adapter import Full, FullConfig
from .lidb.adapter import LiDB, LiDBConfig
from .lora import LoRA, LoRAConfig
from .para.adapter import PaRa, PaRaConfig

FAMILIES: dict[str, type[AdapterLayer]] = {family.family: family for family in (LoRA, LiDB, PaRa, Full)}

__all__ = [
    "FAMILIES", "AdapterLayer", "Full", "FullConfig", "LiDB", "LiDBConfig", "LoRA", "LoRAConfig", "PaRa", "PaRaConfig",
]  # fmt: skip
