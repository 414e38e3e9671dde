"""Convolution by im2col: one matrix product, faster on a CPU for the deep layers of a U-Net.

oneDNN reorders a convolution's weight at every call. For 1280 x 1280 x 3 x 3 values that is 59 MB, which glibc maps and
unmaps each time, while the convolution itself, at 8 x 8 positions, reads each value once. The product of the flattened
weight with the unfolded image needs no reordering: it is 2 to 4 times faster there, in both directions (measured by
`benchmarks/convolution.py`, with the stock allocator). With more positions or smaller weights oneDNN is faster.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_WEIGHT_SIZE = 1 << 23
"""Least number of values in the weight (32 MiB in float32): smaller ones stay in the processor's cache."""
MAX_POSITIONS = 256
"""Largest number of output positions (batch x height x width) for which the product is faster."""


def is_faster(layer: nn.Module, x: Tensor) -> bool:
    """Return whether im2col is faster than the library for ``layer`` at input ``x [B, in, h, w]``."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        return False
    weight_size = layer.out_channels * layer.in_channels * math.prod(layer.kernel_size)
    return weight_size >= MIN_WEIGHT_SIZE and len(x) * math.prod(output_size(layer, x)) <= MAX_POSITIONS


def output_size(layer: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """Return height and width of the output: ``(n + 2 p - d (k - 1) - 1) // s + 1``."""
    geometry = zip(x.shape[-2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)
    return rows, columns


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution ``W @ unfold(x)`` as ``[B, out, rows, columns]``.

    Args:
        layer: gives kernel size, stride, padding and dilation.
        x: input ``[B, in, h, w]``; unfolded it is ``[in kh kw, B L]`` with L output positions.
        weight: ``[out, in, kh, kw]``; flattened it is ``[out, in kh kw]``.
        bias: ``[out]``, or None.
    """
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    product = weight.flatten(1) @ unfolded.transpose(0, 1).flatten(1)
    y = product.unflatten(1, (len(x), *output_size(layer, x))).transpose(0, 1).contiguous()
    return y if bias is None else y.add_(bias[:, None, None])


def input_gradient(layer: nn.Conv2d, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient of :func:`convolve` with respect to its input: ``fold(W^T @ dL/dy)``.

    Args:
        layer: gives kernel size, stride, padding and dilation.
        gradient: ``dL/dy [B, out, rows, columns]``.
        weight: ``[out, in, kh, kw]``.
        shape: of the input, ``[B, in, h, w]``.
    """
    product = weight.flatten(1).t() @ gradient.transpose(0, 1).flatten(1)
    unfolded = product.unflatten(1, (shape[0], -1)).transpose(0, 1)
    return F.fold(unfolded, shape[-2:], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
