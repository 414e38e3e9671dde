"""The directions that a weight uses least: its left singular vectors of smallest singular value."""

import torch
from torch import Tensor

ITERATIONS = 8
EXTRA_COLUMNS = 8
"""Columns iterated beside those asked for, so that the last of these converge too."""
SHIFTS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
"""Parts of the largest eigenvalue, the size of zero ones; the next where rounding has made some more negative."""


@torch.no_grad()
def smallest_left_singular_vectors(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``q [out, count]`` of orthonormal columns with next to the smallest ``||q^T W||_F``, for ``W [out, in]``.

    Inverse iteration of a subspace with ``(W W^T + e I)^-1``. Where W is taller than wide it is left to the Woodbury
    identity, ``e (W W^T + e I)^-1 = I - W (W^T W + e I)^-1 W^T``: no matrix is larger than the smaller side, and what
    converges is W^T's null space, whose removal changes W by rounding only. Float32 tells singular values apart down
    to about 3e-4 of the largest, and those below are as good as zero.

    Args:
        generator: of the CPU; the iteration starts from its draws, and they choose where vectors are equally good.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    rows, columns = weight.shape
    weight = weight.cpu().float() if weight.device.type == "mps" else weight.float()
    weight = weight / weight.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    tall = rows > columns
    factor = _cholesky(weight.mT @ weight if tall else weight @ weight.mT)
    q = torch.randn(rows, min(rows, count + EXTRA_COLUMNS), generator=generator).to(weight.device)
    for _ in range(ITERATIONS):
        q = q - weight @ torch.cholesky_solve(weight.mT @ q, factor) if tall else torch.cholesky_solve(q, factor)
        q = torch.linalg.qr(q).Q
    used = q.mT @ weight
    _, order = torch.linalg.eigh((used @ used.mT).cpu().double())
    return q @ order[:, :count].to(q)


def _cholesky(gram: Tensor) -> Tensor:
    """The factor of ``gram + e I`` for the smallest e that makes it positive definite."""
    size = torch.linalg.matrix_norm(gram, 1).clamp(min=1.0)
    for shift in SHIFTS:
        shifted = gram.clone()
        shifted.diagonal().add_(shift * size)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            return factor
    raise ValueError("the model's weight holds NaN or infinity; load a sound checkpoint")
