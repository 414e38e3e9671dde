"""Shortening of gradients: of a run's as one, or of each subject's by itself where several train side by side."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

TINY = 1e-6
"""Added to a norm that is divided by, as in PyTorch's own function."""


def clip_gradients(parameters: Sequence[nn.Parameter], longest: float, per_subject: bool = False) -> float:
    """Shorten the gradient to ``longest``; 0 leaves it.

    Args:
        per_subject: the parameters' leading dimension is one of subjects, each clipped by itself:
            what a subject learns has nothing to do with who is beside it.

    Returns:
        the norm before, of several subjects the largest.
    """
    if not per_subject:
        return nn.utils.clip_grad_norm_(parameters, longest or math.inf).item()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = _norms(gradients)
    if longest:
        shares = (longest / (norms + TINY)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(shares.view(-1, *[1] * (gradient.ndim - 1)))
    return norms.max().item()


@torch.no_grad()
def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """``[subjects]``; a subject whose gradient is no number makes the largest one none, too."""
    squares = [gradient.flatten(1).float().square().sum(1) for gradient in gradients]
    return torch.stack(squares).sum(0).sqrt()
