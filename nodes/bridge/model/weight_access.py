"""A loaded layer's weight, wherever it is and however it is kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....models.backbone.frozen_layers import own_weights


@contextmanager
def access_weight(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The weight and bias in the dtype and on the device of ``like``, through ComfyUI's own casting.

    So offloaded, staged (dynamic VRAM), patched and quantised weights all arrive as the sampler would see them,
    and are given back after use. Every call also notices ComfyUI's cancel button.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    with torch.inference_mode():
        weight, bias, offloaded = _cast(layer, like)
    try:
        yield weight, bias
    finally:
        if isinstance(layer, comfy.ops.CastWeightBiasOp):
            comfy.ops.uncast_bias_weight(layer, weight, bias, offloaded)


def _cast(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None, object]:
    if not isinstance(layer, comfy.ops.CastWeightBiasOp):
        with own_weights(layer, like) as (weight, bias):
            return weight, bias, None
    weight, bias, offloaded = comfy.ops.cast_bias_weight(
        layer, dtype=like.dtype, device=like.device, bias_dtype=like.dtype, offloadable=True
    )
    if isinstance(weight, QuantizedTensor):
        weight = weight.dequantize().to(like.dtype)
    return weight, bias, offloaded
