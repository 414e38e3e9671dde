"""Weights of blocks that do not run, off the training device for a while."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import nn

from ....models.backbone.frozen_layers import is_convolution, is_linear
from ....models.hollowed_net.network import HollowedNetwork


@contextmanager
def offloaded(patcher: Any, hollow: HollowedNetwork) -> Iterator[None]:
    """Inside the block the weights of ``hollow``'s blocks are where ComfyUI keeps what is not in use.

    Those of ComfyUI's linear layers, convolutions and norms: they find their weights wherever these are, so that a look
    at the whole network still works. Afterwards each is back, the same bits. With dynamic VRAM nothing is to be done:
    ComfyUI itself gives the place of weights that are not asked for to others.
    """
    if not moves(patcher):
        yield
        return
    moved: list[tuple[nn.Module, torch.device]] = []
    try:
        with torch.inference_mode():
            for layer in (module for block in hollow.blocks for module in block.modules() if _finds_weights(module)):
                moved.append((layer, next(layer.parameters(recurse=False)).device))
                layer.to(patcher.offload_device)  # a quantised weight is more than its data
        yield
    finally:
        with torch.inference_mode():
            _put_back(patcher, moved)


def leaves_device(patcher: Any) -> bool:
    """Whether what is not in use is in other memory than the training device's; Apple's GPUs have none of their own."""
    return patcher.offload_device != patcher.load_device and patcher.load_device.type != "mps"


def moves(patcher: Any) -> bool:
    """Whether it is :func:`offloaded` that takes it there."""
    return leaves_device(patcher) and not patcher.is_dynamic()


def _put_back(patcher: Any, moved: list[tuple[nn.Module, torch.device]]) -> None:
    """Where memory does not allow it (frames of the error that ended the run may hold activations), the layer is left
    where it is, marked as ComfyUI marks what it offloads: it works from there, and is loaded when there is room."""
    for layer, device in moved:
        try:
            layer.to(device)
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            logging.info("HyperBooth: no room on %s yet; a layer stays on %s", device, patcher.offload_device)
            _mark_offloaded(patcher.model, layer)


def _mark_offloaded(model: Any, layer: Any) -> None:
    if not hasattr(layer, "prev_comfy_cast_weights"):
        layer.prev_comfy_cast_weights = layer.comfy_cast_weights
        layer.comfy_cast_weights = True
    model.model_lowvram = True


def _finds_weights(module: nn.Module) -> bool:
    norms = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    known = is_linear(module) or is_convolution(module) or isinstance(module, norms)
    return known and hasattr(module, "comfy_cast_weights") and any(True for _ in module.parameters(recurse=False))
