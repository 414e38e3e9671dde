"""Accessed weights equal those of sampling, in whatever form ComfyUI keeps them."""

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from hyperbooth.models.backbone.frozen_layers import frozen
from hyperbooth.nodes.bridge.model.weight_access import access_weight
from torch import Tensor, nn

LIKE = torch.empty(0)


def linear(operations: type = comfy.ops.manual_cast, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.inference_mode():
        layer = operations.Linear(16, 16, dtype=dtype)
        layer.weight = nn.Parameter(torch.randn(16, 16).to(dtype), requires_grad=False)
        layer.bias = nn.Parameter(torch.randn(16).to(dtype), requires_grad=False)
    return layer


def quantized() -> nn.Module:
    """Return a layer of ComfyUI's mixed-precision operations with an fp8 weight and its scale."""
    operations = comfy.ops.mixed_precision_ops({}, torch.float32)
    layer = operations.Linear(16, 16)
    layer.bias.data.zero_()
    weight = QuantizedTensor.from_float(torch.randn(16, 16), "TensorCoreFP8E4M3Layout", scale="recalculate")
    layer.weight, layer.layout_type = nn.Parameter(weight, requires_grad=False), "TensorCoreFP8E4M3Layout"
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_weights_have_the_requested_dtype(dtype: torch.dtype, wanted: torch.dtype) -> None:
    layer = linear(dtype=dtype)
    with access_weight(layer, LIKE.to(wanted)) as (weight, bias):
        assert weight.dtype == bias.dtype == wanted
        torch.testing.assert_close(weight, layer.weight.to(wanted))


def test_a_quantized_layer_trains_through_its_dequantized_weight() -> None:
    layer = quantized()
    x = torch.randn(3, 16, requires_grad=True)
    with frozen(layer, access_weight):
        y = layer(x)
        y.sum().backward()
    dense = layer.weight.dequantize().float()
    torch.testing.assert_close(y, x @ dense.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, torch.ones(3, 16) @ dense, rtol=1e-4, atol=1e-4)


def test_patches_on_the_fly_are_part_of_the_weight_in_both_directions() -> None:
    layer = linear()
    layer.weight_function = [lambda weight: weight * 2]
    x = torch.randn(3, 16, requires_grad=True)
    with frozen(layer, access_weight):
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 16) @ (2 * layer.weight.clone()))


def test_a_layer_staged_by_dynamic_vram_is_cast_and_left_as_it_is() -> None:
    """Dynamic VRAM marks a layer with ``_v``; accessed on the CPU, its weight is a copy."""
    layer = linear()
    layer._v = object()
    before = layer.weight.clone()
    with access_weight(layer, LIKE) as (weight, _):
        assert weight.data_ptr() != layer.weight.data_ptr()
        assert torch.equal(weight, before)
    assert torch.equal(layer.weight, before)


def test_cancel_is_noticed_at_the_next_weight() -> None:
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException), access_weight(linear(), LIKE):
        raise AssertionError("not reached")
    with access_weight(linear(), LIKE) as (weight, _):
        assert isinstance(weight, Tensor)
