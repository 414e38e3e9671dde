"""Access to a loaded layer's weight, on whatever device and in whatever form ComfyUI keeps it.

``layer.weight`` alone is not the weight that a sampler computes with. It may be on the offload device, staged by
dynamic VRAM, without the patches that are applied at every call, or a quantized tensor whose data needs its scale.
ComfyUI's own cast resolves all of these, so adapters train against the weight that sampling uses.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....models.backbone.frozen_layers import module_weights


@contextmanager
def access_weight(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the layer's weight and bias in the dtype and on the device of ``like``, through ComfyUI's cast.

    Offloaded, staged, patched and quantized weights are cast as for sampling, and released after use. Each call raises
    ComfyUI's interrupt exception if the user has pressed cancel.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    with torch.inference_mode():
        weight, bias, offload_state = _cast(layer, like)
    try:
        yield weight, bias
    finally:
        if isinstance(layer, comfy.ops.CastWeightBiasOp):
            comfy.ops.uncast_bias_weight(layer, weight, bias, offload_state)


def _cast(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None, object]:
    if not isinstance(layer, comfy.ops.CastWeightBiasOp):
        with module_weights(layer, like) as (weight, bias):
            return weight, bias, None
    weight, bias, offload_state = comfy.ops.cast_bias_weight(
        layer, dtype=like.dtype, device=like.device, bias_dtype=like.dtype, offloadable=True
    )
    if isinstance(weight, QuantizedTensor):
        weight = weight.dequantize().to(like.dtype)
    return weight, bias, offload_state
