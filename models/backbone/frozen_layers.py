"""Frozen layers that keep nothing of their weights for backward.

An inference engine's weights may be inference tensors, quantised, or on another device, and autograd
refuses to keep the first and would copy the others. A frozen layer needs its weight in backward only for
``dL/dx = W^T dL/dy``, so it keeps the *layer* and asks for the weight again:

    ``borrow(layer, like)`` -> context manager giving ``(weight, bias)`` in the dtype and on the device of ``like``.

So a base in half precision or fp8, or one that is offloaded, trains without a second copy of it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import im2col
from .forward_patch import Forward, replaced_forward

WeightAccess = Callable[[nn.Module, Tensor], AbstractContextManager[tuple[Tensor, Tensor | None]]]

SMALL = 1 << 20
"""Elements up to which a bare parameter or buffer is copied for the session (scales, tokens, tables)."""


@contextmanager
def own_weights(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The plainest ``borrow``: the layer's weight and bias, cast."""
    bias = None if isinstance(layer, nn.RMSNorm) else layer.bias
    yield layer.weight.to(like), None if bias is None else bias.to(like)


class Bias:
    """A layer's bias in the dtype and on the device of its output; asked for once, and copied."""

    def __init__(self, layer: nn.Module, access_weight: WeightAccess):
        self._layer, self._borrow = layer, access_weight
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, y: Tensor) -> Tensor | None:
        if self._layer.bias is None:
            return None
        key = (y.dtype, y.device)
        if key not in self._copies:
            with self._borrow(self._layer, y) as (_, bias):
                self._copies[key] = bias.detach().clone()
        return self._copies[key]


class FrozenLinear(torch.autograd.Function):
    """``y = x W^T + b``; backward to ``x`` only: ``dL/dx = dL/dy W``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear, access_weight: WeightAccess) -> Tensor:
        ctx.layer, ctx.access_weight = layer, access_weight
        with access_weight(layer, x) as (weight, bias):
            return no_view(F.linear(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        with ctx.access_weight(ctx.layer, gradient) as (weight, _):
            return gradient @ weight, None, None


class FrozenConvolution(torch.autograd.Function):
    """``y = W * x + b`` in one, two or three dimensions; backward to ``x`` only, by the transposed convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d, access_weight: WeightAccess) -> Tensor:
        ctx.layer, ctx.access_weight, ctx.shape = layer, access_weight, x.shape
        ctx.few = im2col.pays(layer, x)
        with access_weight(layer, x) as (weight, bias):
            y = im2col.convolve(layer, x, weight, bias) if ctx.few else layer._conv_forward(x, weight, bias)
            return no_view(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        layer = ctx.layer
        unused_input = gradient.new_empty(1).expand(ctx.shape)
        with ctx.access_weight(layer, gradient) as (weight, _):
            if ctx.few:
                return im2col.to_input(layer, gradient, weight, ctx.shape), None, None
            to_input, _, _ = torch.ops.aten.convolution_backward(
                gradient, unused_input, weight, None, layer.stride, layer.padding, layer.dilation,
                False, [0], layer.groups, (True, False, False),
            )  # fmt: skip
        return to_input, None, None


@contextmanager
def frozen(
    network: nn.Module, access_weight: WeightAccess = own_weights, adds_in_place: bool = False
) -> Iterator[None]:
    """Inside the block, gradients flow through ``network`` to its inputs, and none of its weights is kept.

    Linear layers and convolutions ask ``borrow`` for their weights; norms and other small tensors, which
    autograd does keep, are copied for the session. After the block the network is as it was.

    Args:
        adds_in_place: the network writes ``x += f(norm(x))`` (ComfyUI's text encoders and Flux do), which would
            spoil the input that a norm keeps for backward; norms then keep a copy, those of the network's own
            make (T5's) as well.
    """
    with ExitStack() as stack:
        for module in network.modules():
            _freeze(module, access_weight, adds_in_place, stack)
        yield


def is_linear(module: nn.Module) -> bool:
    """A linear layer; ComfyUI's quantised one is no ``nn.Linear`` but has its two numbers."""
    return isinstance(module, nn.Linear) or hasattr(module, "in_features")


def is_convolution(module: nn.Module) -> bool:
    """A convolution with numeric, zero padding."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, kinds) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _freeze(module: nn.Module, access_weight: WeightAccess, adds_in_place: bool, stack: ExitStack) -> None:
    if is_linear(module):
        stack.enter_context(replaced_forward(module, _through(FrozenLinear, module, access_weight)))
    elif is_convolution(module):
        stack.enter_context(replaced_forward(module, _through(FrozenConvolution, module, access_weight)))
    elif isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        stack.enter_context(replaced_forward(module, _norm(module, access_weight, adds_in_place)))
    elif not isinstance(module, nn.Embedding):
        stack.enter_context(_copied_tensors(module))
        if adds_in_place and _is_leaf_with_weights(module):
            stack.enter_context(replaced_forward(module, _on_a_copy(module.forward)))


def _through(function: type[torch.autograd.Function], layer: nn.Module, access_weight: WeightAccess) -> Forward:
    return lambda x: function.apply(x, layer, access_weight)


def no_view(y: Tensor) -> Tensor:
    """The same numbers as a tensor of its own: autograd refuses ``y += ...`` on a view that a function returned."""
    return y.data if y._is_view() else y


def _is_leaf_with_weights(module: nn.Module) -> bool:
    return bool(module._parameters) and not module._modules


def _on_a_copy(forward: Forward) -> Forward:
    return lambda x, *args, **kwargs: forward(x.clone(), *args, **kwargs)


def _norm(layer: nn.Module, access_weight: WeightAccess, copy_input: bool) -> Forward:
    """The norm with copies of its few weights, made at the first call in each dtype."""
    copies: dict[tuple[torch.dtype, torch.device], tuple[Tensor | None, ...]] = {}

    def weights(x: Tensor) -> tuple[Tensor | None, ...]:
        if layer.weight is None:
            return None, None
        key = (x.dtype, x.device)
        if key not in copies:
            with access_weight(layer, x) as borrowed:
                copies[key] = tuple(None if tensor is None else tensor.clone() for tensor in borrowed)
        return copies[key]

    def forward(x: Tensor) -> Tensor:
        weight, bias = weights(x)
        x = x.clone() if copy_input else x
        if isinstance(layer, nn.GroupNorm):
            return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        if isinstance(layer, nn.LayerNorm):
            return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
        return F.rms_norm(x, layer.normalized_shape, weight, layer.eps)

    return forward


@contextmanager
def _copied_tensors(module: nn.Module) -> Iterator[None]:
    """A module's own small inference tensors are ordinary copies inside the block.

    Larger ones (tables of positions) are only ever added, which autograd does without keeping them.
    """
    before = [(store, dict(store)) for store in (module._parameters, module._buffers)]
    try:
        for store, originals in before:
            store.update({name: _ordinary(tensor) for name, tensor in originals.items()})
        yield
    finally:
        for store, originals in before:
            store.update(originals)


def _ordinary(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_inference() or tensor.numel() > SMALL:
        return tensor
    copy = tensor.detach().clone()
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
