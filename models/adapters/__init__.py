"""The families, by the names that files and reports use."""

from .base import Adapter
from .lora import LoRA, LoRAConfig

FAMILIES: dict[str, type[Adapter]] = {family.family: family for family in (LoRA,)}

__all__ = ["FAMILIES", "Adapter", "LoRA", "LoRAConfig"]
