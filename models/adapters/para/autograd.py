"""A projection on a layer's output: ``y' = y - Q Q^T (y - b)``, which is ``(W - Q Q^T W) x + b`` without W.

Q is an orthonormal basis of the columns of B, ``B = Q R``. The change depends on their span alone, on
``P = Q Q^T``, and so the gradient needs no derivative of the decomposition: with ``dP = (I - P) dB R^-1 Q^T + (..)^T``,

    ``dL/dB = -(g_y^T h + (y' - b)^T k) R^-T``,   ``h = (y - b) Q``,   ``k = g Q``,   ``g_y = g - k Q^T``

for the gradient ``g = dL/dy'`` (rows are tokens). Kept for it are y', which attention keeps as well, and h of r numbers
per token.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...backbone.frozen_layers import without_view


class ProjectOutput(torch.autograd.Function):
    """``y - Q Q^T (y - b)`` for the tokens of a linear layer, ``y [..., out]``; or, with ``places``, for the channels
    of a convolution, ``y [n, out, height, width]``.

    Args (of ``apply``):
        y: what the layer gave, bias included.
        basis: B ``[out, r]``, or ``[subjects, out, r]`` with a sample of ``y`` for each; it gets the gradient.
        q, r: its decomposition, in float32.
        bias: b ``[out]`` or None.
        places: whether ``y`` is a convolution's.
        written_over: the result may be written over, so that y is kept instead of y'.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, basis: Tensor, q: Tensor, r: Tensor, bias: Tensor | None, places: bool,
        modified_in_place: bool = False,
    ) -> Tensor:  # fmt: skip
        q = q.to(y.dtype)
        flat = _flat(y, q, places)
        hidden = q.mT @ flat if places else flat @ q
        if bias is not None:
            offset = q.mT @ bias  # [..., r]
            hidden = hidden - (offset[..., :, None] if places else offset[..., None, :])
        out = without_view(_minus(flat, q, hidden, places).view_as(y))
        ctx.save_for_backward(y if modified_in_place else out, hidden, q, r, bias)
        ctx.places, ctx.projected = places, not modified_in_place
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, hidden, q, r, bias = ctx.saved_tensors
        flat = _flat(gradient, q, ctx.places)
        k = q.mT @ flat if ctx.places else flat @ q
        to_y = _minus(flat, q, k, ctx.places)
        to_basis = None
        if ctx.needs_input_grad[1]:
            span = _outer(to_y, hidden, ctx.places) + _outer(_flat(kept, q, ctx.places), k, ctx.places)
            if not ctx.projected:  # (y' - b)^T k = (I - P) (y - b)^T k
                span = span - q.float() @ _outer(hidden, k, ctx.places)
            if bias is not None:
                total = k.float().sum(-1 if ctx.places else -2)
                span = span - bias.float()[:, None] * total[..., None, :]
            while span.ndim > r.ndim:
                span = span.sum(0)
            to_basis = torch.linalg.solve_triangular(r.mT, -span, upper=False, left=False)
        return to_y.view_as(gradient), to_basis, None, None, None, None, None


def _flat(y: Tensor, q: Tensor, places: bool) -> Tensor:
    """``[n, out, L]`` for places; ``[tokens, out]`` for tokens of one subject, ``[subjects, tokens, out]`` of several.

    Raises:
        ValueError: the batch has another size than that of the subjects.
    """
    if q.ndim == 3 and len(y) != len(q):
        raise ValueError(f"a batch of {len(y)} samples for {len(q)} subjects; give each subject one sample")
    if places:
        return y.flatten(2)
    return y.reshape(*q.shape[:-2], -1, y.shape[-1])


def _minus(flat: Tensor, q: Tensor, hidden: Tensor, places: bool) -> Tensor:
    """``flat - Q hidden``, the difference inside the product: one pass less."""
    if places:
        return torch.baddbmm(flat, q.expand(len(flat), *q.shape[-2:]), hidden, alpha=-1)
    return (torch.addmm if q.ndim == 2 else torch.baddbmm)(flat, hidden, q.mT, alpha=-1)


def _outer(left: Tensor, right: Tensor, places: bool) -> Tensor:
    """The sum over tokens or places of ``left_i right_j``, ``[..., out, r]`` in float32."""
    return (left @ right.mT if places else left.mT @ right).float()
