"""Nodes of the training methods: each chooses what is trained and how the change is parametrized."""

from .full_finetune import MethodDreamBooth
from .lidb import MethodLiDB
from .lora import MethodLoRA
from .para import MethodPaRa
from .textual_inversion import MethodTextualInversion

__all__ = ["MethodDreamBooth", "MethodLiDB", "MethodLoRA", "MethodPaRa", "MethodTextualInversion"]
