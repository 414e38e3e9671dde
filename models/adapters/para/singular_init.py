"""Initialization of PaRa: a weight's left singular vectors of smallest singular value."""

import torch
from torch import Tensor

ITERATIONS = 8
EXTRA_COLUMNS = 8
"""Columns iterated in addition to those asked for, which lets the last of these converge too."""
SHIFTS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
"""Diagonal shifts relative to the largest eigenvalue, tried in turn until rounding leaves no eigenvalue negative."""


@torch.no_grad()
def smallest_left_singular_vectors(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``q [out, count]`` of orthonormal columns with almost the smallest ``||q^T W||_F``.

    The method is inverse iteration of a subspace with ``(W W^T + e I)^-1``. For a W of more rows than columns the
    Woodbury identity is used, ``e (W W^T + e I)^-1 = I - W (W^T W + e I)^-1 W^T``: no matrix is larger than the smaller
    side, and the iteration converges to the null space of W^T, whose removal changes W by rounding only. Float32
    separates singular values down to about 3e-4 of the largest; smaller ones count as zero.

    Args:
        weight: ``W [out, in]``.
        count: the number of vectors.
        generator: of the CPU; the iteration starts from its values, which also decide among equally good vectors.

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
    """Return the Cholesky factor of ``gram + e I`` for the smallest e that makes it positive definite.

    Raises:
        ValueError: no e does, because the matrix holds NaN or infinity.
    """
    size = torch.linalg.matrix_norm(gram, 1).clamp(min=1.0)
    for shift in SHIFTS:
        shifted = gram.clone()
        shifted.diagonal().add_(shift * size)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            return factor
    raise ValueError("the model's weight holds NaN or infinity; load a sound checkpoint")
