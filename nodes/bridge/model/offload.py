"""Offloading of the removed blocks' weights while they do not run.

ComfyUI offloads whole models, and with dynamic VRAM the weights that no layer has asked for. Without dynamic VRAM the
weights of removed blocks would stay on the training device although nothing runs them; here they move to the MODEL's
offload device. A session's layers access their weights through ComfyUI's cast, so the whole network still runs while
they are there.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import nn

from ....models.backbone.frozen_layers import is_convolution, is_linear
from ....models.hollowed_net.network import HollowedNetwork

logger = logging.getLogger("hyperbooth")


@contextmanager
def offloaded(patcher: Any, hollow: HollowedNetwork) -> Iterator[None]:
    """Keep the removed blocks' weights on the MODEL's offload device inside the block.

    Only ComfyUI's linear layers, convolutions and norms move, because these access their weights through its cast.
    Afterwards each is on its former device with the same bits. With dynamic VRAM nothing moves: ComfyUI then reuses the
    memory of weights that no layer asks for.

    Args:
        patcher: the MODEL, loaded on its device.
        hollow: the removed blocks.
    """
    if not offloads_weights(patcher):
        yield
        return
    moved: list[tuple[nn.Module, torch.device]] = []
    try:
        with torch.inference_mode():
            for layer in (module for block in hollow.blocks for module in block.modules() if _casts_weights(module)):
                moved.append((layer, next(layer.parameters(recurse=False)).device))
                layer.to(patcher.offload_device)  # Module.to: a quantized weight is more than its data
        yield
    finally:
        with torch.inference_mode():
            _restore(patcher, moved)


def has_offload_device(patcher: Any) -> bool:
    """Return whether offloaded weights leave the training device's memory; Apple's GPUs share main memory."""
    return patcher.offload_device != patcher.load_device and patcher.load_device.type != "mps"


def offloads_weights(patcher: Any) -> bool:
    """Return whether :func:`offloaded` moves weights, rather than ComfyUI's dynamic VRAM or nothing at all."""
    return has_offload_device(patcher) and not patcher.is_dynamic()


def _restore(patcher: Any, moved: list[tuple[nn.Module, torch.device]]) -> None:
    """Move the layers back to their devices.

    If memory does not suffice (the frames of the error that ended the run may still hold activations), a layer stays
    on the offload device, marked as ComfyUI marks its own offloaded layers: it works from there, and is loaded once
    there is room.
    """
    for layer, device in moved:
        try:
            layer.to(device)
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            logger.info("no memory on %s yet; a layer stays on %s", device, patcher.offload_device)
            _mark_offloaded(patcher.model, layer)


def _mark_offloaded(model: Any, layer: Any) -> None:
    if not hasattr(layer, "prev_comfy_cast_weights"):
        layer.prev_comfy_cast_weights = layer.comfy_cast_weights
        layer.comfy_cast_weights = True
    model.model_lowvram = True


def _casts_weights(module: nn.Module) -> bool:
    norms = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    known = is_linear(module) or is_convolution(module) or isinstance(module, norms)
    return known and hasattr(module, "comfy_cast_weights") and any(True for _ in module.parameters(recurse=False))
