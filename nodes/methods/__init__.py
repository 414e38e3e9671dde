"""How it is learnt: the parametrisation of the change, a node each."""

from .full_finetune import MethodDreamBooth
from .lidb import MethodLiDB
from .lora import MethodLoRA
from .para import MethodPaRa
from .textual_inversion import MethodTextualInversion

__all__ = ["MethodDreamBooth", "MethodLiDB", "MethodLoRA", "MethodPaRa", "MethodTextualInversion"]
