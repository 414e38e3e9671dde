"""A low-rank update as a parallel branch of its layer, on the layer's input and output.

``y = f(x) + up (down x)``: the updated weight ``W + up @ down`` is never built. A step costs ``r (in + out)`` products
per token in addition to the layer's own ``in * out``, and no memory of the weight's size.

Factors with a leading dimension are a batch of subjects: sample i of the input passes through the factors i. If only
``up`` has that dimension, all subjects share ``down``, which is then one product or convolution for the whole batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def low_rank_branch(layer: nn.Module, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return ``y + up (down x)``.

    Args:
        layer: the linear layer or convolution, for its geometry.
        y: the layer's output.
        x: the layer's input.
        up: ``[out, r]``, or ``[subjects, out, r]``; in the dtype of ``x``.
        down: ``[r, in]`` with a kernel flattened into ``in``, or ``[subjects, r, in]`` if ``up`` has subjects as well.

    Raises:
        ValueError: the batch size differs from the number of subjects.
    """
    per_sample = up.ndim == 3
    if per_sample and len(x) != len(up):
        raise ValueError(f"a batch of {len(x)} samples for {len(up)} subjects; give each subject one sample")
    if isinstance(layer, nn.Conv2d):
        return (_batched_convolution if per_sample else _convolution)(layer, y, x, up, down)
    return (_batched_linear if per_sample else _linear)(y, x, up, down)


def _linear(y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return ``y + (x down^T) up^T`` with the sum inside the second product, which saves one pass over ``y``."""
    hidden = F.linear(x, down)
    return torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), up.t()).view_as(y)


def _batched_linear(y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    subjects = len(up)
    hidden = x.reshape(subjects, -1, x.shape[-1]) @ down.mT
    return torch.baddbmm(y.reshape(subjects, -1, y.shape[-1]), hidden, up.mT).view_as(y)


def _convolution(layer: nn.Conv2d, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Convolve with the layer's own geometry to r channels, then 1 x 1 to the output's channels."""
    kernel = down.unflatten(1, (-1, *layer.kernel_size))
    hidden = F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
    return y + F.conv2d(hidden, up[:, :, None, None])


def _batched_convolution(layer: nn.Conv2d, y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Convolve with the subjects as groups of one convolution, unless they share ``down``."""
    kernel = down.unflatten(-1, (-1, *layer.kernel_size))
    geometry = None, layer.stride, layer.padding, layer.dilation
    if down.ndim == 2:
        hidden = F.conv2d(x, kernel, *geometry)
    else:
        hidden = F.conv2d(x.flatten(0, 1)[None], kernel.flatten(0, 1), *geometry, len(up))
    return torch.baddbmm(y.flatten(2), up, hidden.reshape(*up.shape[::2], -1)).view_as(y)
