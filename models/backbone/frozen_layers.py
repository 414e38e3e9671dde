"""Frozen layers that do not store their weights for the backward pass.

An inference engine's weights may be inference tensors, quantized, or on another device. Autograd refuses to store the
first kind, and would store a cast or moved copy of the others from forward to backward, for all layers at once. A
frozen layer needs its weight in backward only for ``dL/dx = W^T dL/dy``. So it stores a reference to the
*layer*, and accesses the weight a second time in backward, through a function of the type :data:`WeightAccess`:

    ``access_weight(layer, like)`` -> context manager that yields ``(weight, bias)`` in dtype and device of ``like``

Thus a base model in half precision or fp8, or one that is offloaded, trains with one layer's weight cast at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import im2col
from .forward_patch import Forward, replaced_forward

WeightAccess = Callable[[nn.Module, Tensor], AbstractContextManager[tuple[Tensor, Tensor | None]]]
"""``(layer, like)`` -> context manager that yields ``(weight, bias)`` in the dtype and on the device of ``like``."""

LAYER_MODULES = ("torch.nn.", "comfy.ops")
"""Modules of Python whose layers compute what PyTorch's layer of that class computes."""

MAX_COPIED = 1 << 20
"""Largest number of values of a bare parameter or buffer (scale, token, table) that is copied for the session."""


@contextmanager
def module_weights(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Access the layer's own weight and bias, cast to ``like``: the simplest :data:`WeightAccess`."""
    bias = None if isinstance(layer, nn.RMSNorm) else layer.bias
    yield layer.weight.to(like), None if bias is None else bias.to(like)


class BiasCache:
    """Copies of a layer's bias, one per dtype and device of its output."""

    def __init__(self, layer: nn.Module, access_weight: WeightAccess):
        self._layer, self._access_weight = layer, access_weight
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, y: Tensor) -> Tensor | None:
        """Return the bias in dtype and device of ``y``, None if the layer has none."""
        if self._layer.bias is None:
            return None
        key = (y.dtype, y.device)
        if key not in self._copies:
            with self._access_weight(self._layer, y) as (_, bias):
                self._copies[key] = bias.detach().clone()
        return self._copies[key]


class FrozenLinear(torch.autograd.Function):
    """Linear layer ``y = x W^T + b`` with a gradient for ``x`` only: ``dL/dx = dL/dy W``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear, access_weight: WeightAccess) -> Tensor:
        ctx.layer, ctx.access_weight = layer, access_weight
        with access_weight(layer, x) as (weight, bias):
            return without_view(F.linear(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        with ctx.access_weight(ctx.layer, gradient) as (weight, _):
            return gradient @ weight, None, None


class FrozenConvolution(torch.autograd.Function):
    """Convolution ``y = W * x + b`` in 1, 2 or 3 dimensions with a gradient for ``x`` only.

    The gradient is the transposed convolution of ``dL/dy``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d, access_weight: WeightAccess) -> Tensor:
        ctx.layer, ctx.access_weight, ctx.shape = layer, access_weight, x.shape
        ctx.use_im2col = im2col.is_faster(layer, x)
        with access_weight(layer, x) as (weight, bias):
            y = im2col.convolve(layer, x, weight, bias) if ctx.use_im2col else layer._conv_forward(x, weight, bias)
            return without_view(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        layer = ctx.layer
        unused_input = gradient.new_empty(1).expand(ctx.shape)
        with ctx.access_weight(layer, gradient) as (weight, _):
            if ctx.use_im2col:
                return im2col.input_gradient(layer, gradient, weight, ctx.shape), None, None
            input_gradient, _, _ = torch.ops.aten.convolution_backward(
                gradient, unused_input, weight, None, layer.stride, layer.padding, layer.dilation,
                False, [0], layer.groups, (True, False, False),
            )  # fmt: skip
        return input_gradient, None, None


@contextmanager
def frozen(
    network: nn.Module, access_weight: WeightAccess = module_weights, adds_in_place: bool = False
) -> Iterator[None]:
    """Inside the block, gradients flow through ``network`` to its inputs, and no large weight is stored for backward.

    Linear layers and convolutions access their weights in forward and again in backward. Norms and other small tensors,
    which autograd does store, are copied for the session. After the block the network is unchanged.

    Args:
        network: with frozen weights.
        access_weight: gives the weights of its layers.
        adds_in_place: whether the network computes ``x += f(norm(x))`` in place (ComfyUI's text encoders and Flux do).
            This would modify the input that a norm stores for backward; norms, also the network's own classes of them
            (T5's), then run on a copy.
    """
    with ExitStack() as stack:
        for module in network.modules():
            _freeze(module, access_weight, adds_in_place, stack)
        yield


def is_linear(module: nn.Module) -> bool:
    """Return whether this is a linear layer; ComfyUI's quantized one only has an ``nn.Linear``'s ``in_features``."""
    return isinstance(module, nn.Linear) or hasattr(module, "in_features")


def is_convolution(module: nn.Module) -> bool:
    """Return whether this is a convolution with zeros for padding, given in numbers."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, kinds) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def has_own_forward(module: nn.Module) -> bool:
    """Return whether a class of the network itself overrides the layer's forward, as Stable Cascade's LayerNorm does.

    The forwards of PyTorch's layers and of those that ComfyUI derives from them compute the same.
    """
    return not type(module).forward.__module__.startswith(LAYER_MODULES)


def _freeze(module: nn.Module, access_weight: WeightAccess, adds_in_place: bool, stack: ExitStack) -> None:
    if is_linear(module):
        stack.enter_context(replaced_forward(module, _through(FrozenLinear, module, access_weight)))
    elif is_convolution(module):
        stack.enter_context(replaced_forward(module, _through(FrozenConvolution, module, access_weight)))
    elif isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)) and not has_own_forward(module):
        stack.enter_context(_copied_tensors(module))  # some networks read a norm's weight without calling it
        stack.enter_context(replaced_forward(module, _norm(module, access_weight, adds_in_place)))
    elif not isinstance(module, nn.Embedding):
        stack.enter_context(_copied_tensors(module))
        if adds_in_place and _is_leaf_with_weights(module):
            stack.enter_context(replaced_forward(module, _on_a_copy(module.forward)))


def _through(function: type[torch.autograd.Function], layer: nn.Module, access_weight: WeightAccess) -> Forward:
    return lambda x: function.apply(x, layer, access_weight)


def without_view(y: Tensor) -> Tensor:
    """Return ``y`` as a tensor that is no view: autograd refuses ``y += ...`` on a view that a function returned."""
    return y.data if y._is_view() else y


def _is_leaf_with_weights(module: nn.Module) -> bool:
    return bool(module._parameters) and not module._modules


def _on_a_copy(forward: Forward) -> Forward:
    return lambda x, *args, **kwargs: forward(x.clone(), *args, **kwargs)


def _norm(layer: nn.Module, access_weight: WeightAccess, copy_input: bool) -> Forward:
    """Return a norm's forward with copies of its few weights, made at the first call per dtype and device."""
    copies: dict[tuple[torch.dtype, torch.device], tuple[Tensor | None, ...]] = {}

    def weights(x: Tensor) -> tuple[Tensor | None, ...]:
        if layer.weight is None:
            return None, None
        key = (x.dtype, x.device)
        if key not in copies:
            with access_weight(layer, x) as tensors:
                copies[key] = tuple(None if tensor is None else tensor.clone() for tensor in tensors)
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
    """Replace a module's own small inference tensors by ordinary copies inside the block.

    Larger ones (tables of positions) are only ever added, for which autograd stores nothing.
    """
    before = [(store, dict(store)) for store in (module._parameters, module._buffers)]
    try:
        for store, originals in before:
            store.update({name: _without_inference_mode(tensor) for name, tensor in originals.items()})
        yield
    finally:
        for store, originals in before:
            store.update(originals)


def _without_inference_mode(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_inference() or tensor.numel() > MAX_COPIED:
        return tensor
    copy = tensor.detach().clone()
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
