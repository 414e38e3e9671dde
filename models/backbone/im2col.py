"""A large convolution at few places, as one matrix product: what the depths of a U-Net ask of a CPU.

oneDNN puts a convolution's weight into an order of its own at every call. For 1280 x 1280 x 3 x 3 numbers that is
59 MB, which glibc maps and unmaps each time, while the convolution itself, at 8 x 8 places, needs them once. The
product of the flattened weight with the unfolded picture needs no other form of them: 2 to 4 times faster there, in
both directions (measured by `benchmarks/convolution.py`, with the stock allocator). With more places or smaller
weights oneDNN wins.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 1 << 23
"""Numbers in a weight (32 MiB in float32) from which on it does not stay in a cache."""
FEW = 256
"""Places (batch x height x width of the output) up to which the product is faster."""


def pays(layer: nn.Module, x: Tensor) -> bool:
    """Whether the product is the faster way for ``layer`` at input ``x``."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        return False
    numbers = layer.out_channels * layer.in_channels * math.prod(layer.kernel_size)
    return numbers >= LARGE and len(x) * math.prod(output_size(layer, x)) <= FEW


def output_size(layer: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """Height and width of the output: ``(n + 2 p - d (k - 1) - 1) // s + 1``."""
    geometry = zip(x.shape[-2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)
    return rows, columns


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``W [out, in kh kw] @ unfold(x) [in kh kw, B L]``, as ``[B, out, rows, columns]``."""
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    product = weight.flatten(1) @ unfolded.transpose(0, 1).flatten(1)
    y = product.unflatten(1, (len(x), *output_size(layer, x))).transpose(0, 1).contiguous()
    return y if bias is None else y.add_(bias[:, None, None])


def to_input(layer: nn.Conv2d, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """``fold(W^T @ dL/dy)``: the gradient of :func:`convolve` to its input of ``shape``."""
    product = weight.flatten(1).t() @ gradient.transpose(0, 1).flatten(1)
    unfolded = product.unflatten(1, (shape[0], -1)).transpose(0, 1)
    return F.fold(unfolded, shape[-2:], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
