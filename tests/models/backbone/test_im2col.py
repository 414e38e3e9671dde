"""Convolution by im2col equals the library's in both directions, and is chosen where it is faster."""

import pytest
import torch
from hyperbooth.models.backbone import im2col
from hyperbooth.models.backbone.frozen_layers import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

GEOMETRY = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.integers(1, 2),
        "padding": st.integers(0, 2),
        "dilation": st.integers(1, 2),
        "bias": st.booleans(),
    }
)


@settings(deadline=None)
@given(GEOMETRY, st.integers(1, 3), st.tuples(st.integers(5, 9), st.integers(5, 9)))
def test_equals_the_library_convolution(geometry: dict, batch: int, size: tuple[int, int]) -> None:
    layer = nn.Conv2d(3, 4, **geometry).requires_grad_(False)
    x = torch.randn(batch, 3, *size, requires_grad=True)
    expected = layer(x)
    y = im2col.convolve(layer, x, layer.weight, layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    gradient = torch.randn_like(expected)
    (plain,) = torch.autograd.grad(expected, x, gradient)
    ours = im2col.input_gradient(layer, gradient, layer.weight, x.shape)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_a_frozen_layer_uses_im2col_for_large_weights_at_few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(1024, 1024, 3, padding=1).requires_grad_(False)
    calls: list[int] = []
    convolve = im2col.convolve
    monkeypatch.setattr(im2col, "convolve", lambda *a: calls.append(1) or convolve(*a))
    x = torch.randn(1, 1024, 8, 8, requires_grad=True)
    (plain,) = torch.autograd.grad(layer(x).square().sum(), x)
    with frozen(layer):
        (ours,) = torch.autograd.grad(layer(x).square().sum(), x)
        layer(torch.randn(1, 1024, 17, 17))
        layer.bfloat16()(torch.randn(1, 1024, 8, 8).bfloat16())
    assert calls == [1]
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


def test_small_weights_use_the_library() -> None:
    assert not im2col.is_faster(nn.Conv2d(320, 320, 3), torch.zeros(1, 320, 8, 8))
