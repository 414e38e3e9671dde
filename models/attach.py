"""How an adapter sits on a layer while it trains: beside the layer, on its input and output.

``y = f(x) + up (down x)``: the changed weight ``W + up @ down`` is never built, so that a step costs
``r (in + out)`` products per token beside the layer's own ``in * out``, and no memory of the weight's size.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters.base import Adapter

Forward = Callable[..., Tensor]


@contextmanager
def replaced_forward(module: nn.Module, forward: Forward) -> Iterator[None]:
    """``module.forward`` is ``forward`` inside the block and what it was after it, whatever happens."""
    had, before = "forward" in vars(module), vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if had:
            module.forward = before
        else:
            del module.forward


@contextmanager
def attached(adapters: Mapping[str, Adapter], modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside the block, each module's output carries the change of the adapter of its name.

    Raises:
        KeyError: an adapter names a layer that ``modules`` lacks.
    """
    with ExitStack() as stack:
        for name, adapter in adapters.items():
            module = modules[name]
            stack.enter_context(replaced_forward(module, _adapted(module, module.forward, adapter)))
        yield


def _adapted(module: nn.Module, forward: Forward, adapter: Adapter) -> Forward:
    beside = _beside_convolution if isinstance(module, nn.Conv2d) else _beside_linear

    def adapted(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        up, down = (factor.to(x.dtype) for factor in adapter.factors())
        return beside(module, forward(x, *args, **kwargs), x, up, down)

    return adapted


def _beside_linear(module: nn.Module, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``y + (x down^T) up^T``, the sum inside the second product: one pass over ``y`` less."""
    hidden = F.linear(x, down)
    return torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), up.t()).view_as(y)


def _beside_convolution(module: nn.Conv2d, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A convolution of the layer's own geometry to r channels, then 1 x 1 to the output's."""
    kernel = module.kernel_size
    hidden = F.conv2d(x, down.unflatten(1, (-1, *kernel)), None, module.stride, module.padding, module.dilation)
    return y + F.conv2d(hidden, up[:, :, None, None])
