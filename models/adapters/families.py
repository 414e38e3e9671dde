"""The families of adapters, by the names that files and reports use."""

from .base import AdapterLayer
from .full.adapter import Full
from .lidb.adapter import LiDB
from .lora import LoRA
from .para.adapter import PaRa

FAMILIES: dict[str, type[AdapterLayer]] = {family.family: family for family in (LoRA, LiDB, PaRa, Full)}
