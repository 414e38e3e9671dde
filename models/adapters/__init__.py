"""The families of adapters, and what they are applied by."""

from .base import AdapterLayer
from .families import FAMILIES
from .full.adapter import Full, FullConfig
from .lidb.adapter import LiDB, LiDBConfig
from .lora import LoRA, LoRAConfig
from .para.adapter import PaRa, PaRaConfig

__all__ = [
    "FAMILIES", "AdapterLayer", "Full", "FullConfig", "LiDB", "LiDBConfig", "LoRA", "LoRAConfig", "PaRa", "PaRaConfig",
]  # fmt: skip
