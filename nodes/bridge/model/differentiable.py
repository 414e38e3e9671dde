"""ComfyUI's fused functions and casts, replaced by ones that autograd knows while a model trains.

ComfyUI's networks call the fused kernels of comfy_kitchen for rotary positions and the norms before them, and some read
a norm's weight by ComfyUI's cast instead of calling the norm. The kernels have no gradient, and a weight that is an
inference tensor cannot be saved for backward.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import comfy.ops
import comfy_kitchen
import torch
from comfy_kitchen.backends.eager import rope
from torch import Tensor, nn


@contextmanager
def differentiable_functions() -> Iterator[None]:
    """Replace ComfyUI's fused functions by plain ones inside the block; cast weights are then no inference tensors."""
    with ExitStack() as stack:
        for name in _fused_names():
            stack.enter_context(patch.object(comfy_kitchen, name, getattr(rope, name)))
        stack.enter_context(patch.object(comfy.ops, "cast_bias_weight", _without_inference(comfy.ops.cast_bias_weight)))
        yield


@contextmanager
def without_prompt_caches(network: nn.Module) -> Iterator[None]:
    """Clear what the network keeps from one forward to the next, before each forward inside the block and after it.

    HiDream-O1 keeps keys and values of the prompt, which do not depend on the image; in training they would be those of
    an earlier step's weights, and part of a graph that is gone.
    """
    clear = getattr(network, "clear_kv_cache", None)
    if clear is None:
        yield
        return
    handle = network.register_forward_pre_hook(lambda *_: clear())
    try:
        yield
    finally:
        handle.remove()
        clear()


def _fused_names() -> list[str]:
    """Return the names of the fused functions that have a plain version, such as ``rms_rope``."""
    return [name for name in vars(rope) if callable(getattr(comfy_kitchen, name, None)) and "rope" in name]


def _without_inference(cast: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``cast`` with copies for autograd; under inference mode, where nothing is saved, it stays as it is."""

    def cast_without_inference(*args: Any, **kwargs: Any) -> Any:
        found = cast(*args, **kwargs)
        return found if torch.is_inference_mode_enabled() else tuple(_ordinary(value) for value in found)

    return cast_without_inference


def _ordinary(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
