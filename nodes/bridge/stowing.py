"""Weights of blocks that do not run, off the training device for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...models.frozen import is_convolution, is_linear
from ...models.hollow import Hollow


@contextmanager
def stowed(patcher: Any, hollow: Hollow) -> Iterator[None]:
    """Inside the block the weights of ``hollow``'s blocks are where ComfyUI keeps what is not in use.

    Those of linear layers, convolutions and norms: they find their weights wherever these are, so that a look at the
    whole network still works. Afterwards each is back, the same bits. With dynamic VRAM nothing is to be done: ComfyUI
    itself gives the place of weights that are not asked for to others.
    """
    if patcher.is_dynamic() or patcher.offload_device == patcher.load_device:
        yield
        return
    moved: list[tuple[nn.Parameter, torch.device]] = []
    try:
        with torch.inference_mode():
            for layer in (module for block in hollow.blocks for module in block.modules() if _finds_weights(module)):
                for parameter in layer.parameters(recurse=False):
                    moved.append((parameter, parameter.device))
                    parameter.data = parameter.data.to(patcher.offload_device)
        yield
    finally:
        with torch.inference_mode():
            for parameter, device in moved:
                parameter.data = parameter.data.to(device)


def _finds_weights(module: nn.Module) -> bool:
    return is_linear(module) or is_convolution(module) or isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm))
