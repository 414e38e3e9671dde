"""A low-rank change beside its layer: on the layer's input and output.

``y = f(x) + up (down x)``: the changed weight ``W + up @ down`` is never built, so that a step costs
``r (in + out)`` products per token beside the layer's own ``in * out``, and no memory of the weight's size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def beside(layer: nn.Module, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``y + up (down x)``, with ``up [out, r]`` and ``down [r, in]`` (a kernel flattened) in the dtype of ``x``."""
    return (_beside_convolution if isinstance(layer, nn.Conv2d) else _beside_linear)(layer, y, x, up, down)


def _beside_linear(layer: nn.Module, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``y + (x down^T) up^T``, the sum inside the second product: one pass over ``y`` less."""
    hidden = F.linear(x, down)
    return torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), up.t()).view_as(y)


def _beside_convolution(layer: nn.Conv2d, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A convolution of the layer's own geometry to r channels, then 1 x 1 to the output's."""
    kernel = layer.kernel_size
    hidden = F.conv2d(x, down.unflatten(1, (-1, *kernel)), None, layer.stride, layer.padding, layer.dilation)
    return y + F.conv2d(hidden, up[:, :, None, None])
