"""The families, by the names that files and reports use."""

from .base import Adapter
from .full import Full, FullConfig
from .lora import LoRA, LoRAConfig

FAMILIES: dict[str, type[Adapter]] = {family.family: family for family in (LoRA, Full)}

__all__ = ["FAMILIES", "Adapter", "Full", "FullConfig", "LoRA", "LoRAConfig"]
