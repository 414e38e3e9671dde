"""Projection of a layer's output: ``y' = y - Q Q^T (y - b)``, which equals ``(W - Q Q^T W) x + b`` without W.

Q is an orthonormal basis of the columns of B, ``B = Q R``. The change depends on their span alone, on
``P = Q Q^T``, and so the gradient needs no derivative of the decomposition: with ``dP = (I - P) dB R^-1 Q^T + (..)^T``,

    ``dL/dB = -(g_y^T h + (y' - b)^T k) R^-T``,   ``h = (y - b) Q``,   ``k = g Q``,   ``g_y = g - k Q^T``

for the gradient ``g = dL/dy'`` (rows are tokens). Autograd keeps y', which attention keeps as well, and h with r values
per token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...backbone.frozen_layers import without_view


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What a projection needs besides the layer's output and the trained basis.

    Args:
        q: ``[..., out, r]`` of the decomposition ``B = q r``, in float32.
        r: ``[..., r, r]``, in float32.
        bias: b ``[out]`` or None.
        spatial: whether the output is a convolution's.
        modified_in_place: the result may be modified in place, in which case y is kept instead of y'.
    """

    q: Tensor
    r: Tensor
    bias: Tensor | None
    spatial: bool
    modified_in_place: bool = False


class ProjectOutput(torch.autograd.Function):
    """``y - Q Q^T (y - b)``, for a linear layer's tokens or a convolution's channels.

    The arguments of ``apply`` are those of ``forward`` after ``ctx``:

        y: the layer's output, bias included; ``[..., out]``, or ``[n, out, height, width]`` of a convolution.
        basis: B ``[out, r]``, or ``[subjects, out, r]`` with one sample of ``y`` for each; it receives the gradient.
        projection: the decomposition of B, and the layer's properties.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, basis: Tensor, projection: Projection) -> Tensor:
        q, r, bias, spatial = projection.q.to(y.dtype), projection.r, projection.bias, projection.spatial
        flat = _flat(y, q, spatial)
        hidden = q.mT @ flat if spatial else flat @ q
        if bias is not None:
            offset = q.mT @ bias  # [..., r]
            hidden = hidden - (offset[..., :, None] if spatial else offset[..., None, :])
        out = without_view(_subtract(flat, q, hidden, spatial).view_as(y))
        ctx.save_for_backward(y if projection.modified_in_place else out, hidden, q, r, bias)
        ctx.spatial, ctx.keeps_result = spatial, not projection.modified_in_place
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        kept, hidden, q, r, bias = ctx.saved_tensors
        flat = _flat(gradient, q, ctx.spatial)
        k = q.mT @ flat if ctx.spatial else flat @ q
        to_y = _subtract(flat, q, k, ctx.spatial)
        to_basis = None
        if ctx.needs_input_grad[1]:
            span = _outer(to_y, hidden, ctx.spatial) + _outer(_flat(kept, q, ctx.spatial), k, ctx.spatial)
            if not ctx.keeps_result:  # (y' - b)^T k = (I - P) (y - b)^T k
                span = span - q.float() @ _outer(hidden, k, ctx.spatial)
            if bias is not None:
                total = k.float().sum(-1 if ctx.spatial else -2)
                span = span - bias.float()[:, None] * total[..., None, :]
            while span.ndim > r.ndim:
                span = span.sum(0)
            to_basis = torch.linalg.solve_triangular(r.mT, -span, upper=False, left=False)
        return to_y.view_as(gradient), to_basis, None


def _flat(y: Tensor, q: Tensor, spatial: bool) -> Tensor:
    """Return ``y`` as ``[n, out, L]`` if spatial, else as ``[tokens, out]``, or ``[subjects, tokens, out]``.

    Raises:
        ValueError: the batch size differs from the number of subjects.
    """
    if q.ndim == 3 and len(y) != len(q):
        raise ValueError(f"a batch of {len(y)} samples for {len(q)} subjects; give each subject one sample")
    if spatial:
        return y.flatten(2)
    return y.reshape(*q.shape[:-2], -1, y.shape[-1])


def _subtract(flat: Tensor, q: Tensor, hidden: Tensor, spatial: bool) -> Tensor:
    """Return ``flat - Q hidden`` with the difference inside the product, which saves one pass."""
    if spatial:
        return torch.baddbmm(flat, q.expand(len(flat), *q.shape[-2:]), hidden, alpha=-1)
    return (torch.addmm if q.ndim == 2 else torch.baddbmm)(flat, hidden, q.mT, alpha=-1)


def _outer(left: Tensor, right: Tensor, spatial: bool) -> Tensor:
    """Return the sum over tokens or positions of ``left_i right_j``, ``[..., out, r]`` in float32."""
    return (left @ right.mT if spatial else left.mT @ right).float()
