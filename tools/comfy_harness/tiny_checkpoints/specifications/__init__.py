"""The smallest network of every family of image models that ComfyUI loads, for tests that hold for all of them."""

from .dit import DIT
from .flux_like import FLUX_LIKE
from .nextdit import NEXTDIT
from .qwen_like import QWEN_LIKE
from .specification import Specification
from .unets import UNETS
from .video import VIDEO

SPECIFICATIONS: dict[str, Specification] = {
    each.name: each for each in (*UNETS, *DIT, *FLUX_LIKE, *NEXTDIT, *QWEN_LIKE, *VIDEO)
}
