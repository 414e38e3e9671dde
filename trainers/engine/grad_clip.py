"""Gradient clipping: of all parameters together, or of each subject by itself where several train in one batch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

TINY = 1e-6
"""Added to a norm that is divided by, as in PyTorch's own function."""


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, per_subject: bool = False) -> float:
    """Clip the gradient to a norm of ``max_norm``.

    Args:
        parameters: whose gradients are clipped, in place.
        max_norm: largest L2 norm; 0 for no clipping.
        per_subject: the parameters' leading dimension is one of subjects, each clipped by itself: its training does
            not depend on the others of its batch.

    Returns:
        The norm before clipping; of several subjects the largest.
    """
    if not per_subject:
        return nn.utils.clip_grad_norm_(parameters, max_norm or math.inf).item()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = _norms(gradients)
    if max_norm:
        factors = (max_norm / (norms + TINY)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
    return norms.max().item()


@torch.no_grad()
def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norms ``[subjects]``; NaN in one subject's gradient makes the largest norm NaN, too."""
    squares = [gradient.flatten(1).float().square().sum(1) for gradient in gradients]
    return torch.stack(squares).sum(0).sqrt()
