"""A low-rank change beside its layer: on the layer's input and output.

``y = f(x) + up (down x)``: the changed weight ``W + up @ down`` is never built, so that a step costs
``r (in + out)`` products per token beside the layer's own ``in * out``, and no memory of the weight's size.

Factors with a leading dimension are a batch of subjects: sample i of the input goes through the factors i. Where only
``up`` has one, all subjects share ``down``, which is one product or convolution for the whole batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def low_rank_branch(layer: nn.Module, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``y + up (down x)``, with ``up [..., out, r]`` and ``down [..., r, in]`` (a kernel flattened) in the dtype of
    ``x``; with subjects in ``up`` alone, or in both.

    Raises:
        ValueError: the batch has another size than that of the subjects.
    """
    several = up.ndim == 3
    if several and len(x) != len(up):
        raise ValueError(f"a batch of {len(x)} samples for {len(up)} subjects; give each subject one sample")
    if isinstance(layer, nn.Conv2d):
        return (_convolutions if several else _convolution)(layer, y, x, up, down)
    return (_linears if several else _linear)(y, x, up, down)


def _linear(y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``y + (x down^T) up^T``, the sum inside the second product: one pass over ``y`` less."""
    hidden = F.linear(x, down)
    return torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), up.t()).view_as(y)


def _linears(y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    subjects = len(up)
    hidden = x.reshape(subjects, -1, x.shape[-1]) @ down.mT
    return torch.baddbmm(y.reshape(subjects, -1, y.shape[-1]), hidden, up.mT).view_as(y)


def _convolution(layer: nn.Conv2d, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A convolution of the layer's own geometry to r channels, then 1 x 1 to the output's."""
    kernel = down.unflatten(1, (-1, *layer.kernel_size))
    hidden = F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
    return y + F.conv2d(hidden, up[:, :, None, None])


def _convolutions(layer: nn.Conv2d, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The subjects as groups of one convolution, if they do not share it."""
    kernel = down.unflatten(-1, (-1, *layer.kernel_size))
    geometry = None, layer.stride, layer.padding, layer.dilation
    if down.ndim == 2:
        hidden = F.conv2d(x, kernel, *geometry)
    else:
        hidden = F.conv2d(x.flatten(0, 1)[None], kernel.flatten(0, 1), *geometry, len(up))
    return torch.baddbmm(y.flatten(2), up, hidden.reshape(*up.shape[::2], -1)).view_as(y)
