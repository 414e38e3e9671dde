"""Linear initialization of the hypernetwork: reduced-rank ridge regression with cross-validated shrinkage.

| symbol | meaning                                                                        |
|--------|--------------------------------------------------------------------------------|
| X      | pooled features of images, ``[R, F]``                                          |
| Z      | the subjects' targets, centered, ``[P, N]``, N far larger than P                |
| V      | the k principal directions of Z, ``[N, k]``                                     |

``z^ = V alpha (W x + b)``: the coordinates ``V^T z`` are regressed on features, see :mod:`.ridge`. Directions estimated
from few subjects, half of whose parameters is noise, point half into noise. The prediction along each of them is shrunk
by ``alpha = E[p q] / E[p^2]``, with p the prediction and q the truth for subjects that neither V nor W was fitted on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .ridge import FOLDS, fit_ridge


@dataclass(frozen=True, kw_only=True)
class LinearRegression:
    """A fitted regression ``z^ = directions (weight x + bias)``.

    Args:
        weight: alpha W ``[k, F]``.
        bias: alpha b ``[k]``.
        directions: V ``[N, k]``.
        captured_variance: share of the variance of Z that lies in the span of V.
        explained_variance: share of the variance of Z that is predicted for held-out subjects (R2).
    """

    weight: Tensor
    bias: Tensor
    directions: Tensor
    captured_variance: float
    explained_variance: float


def fit_linear(
    x: Tensor, z: Tensor, subject_of: Sequence[int], *, rank: int, on_progress: Callable[[], None] = lambda: None
) -> LinearRegression:  # fmt: skip
    """Fit the regression of ``rank`` directions.

    Args:
        x: features ``[R, F]``, one row per image.
        z: targets ``[P, N]`` of mean zero, one row per subject.
        subject_of: for each row of ``x``, its subject's row in ``z``.
        rank: k; fewer directions are returned if there are fewer subjects.
        on_progress: called before each fold of the cross-validation: thousands of subjects take a minute.
    """
    subjects, folds = torch.as_tensor(subject_of), min(FOLDS, len(z))
    products, squares = z.new_zeros(rank), z.new_zeros(rank)
    for fold in range(folds):
        on_progress()
        held_out = subjects % folds == fold
        predicted, true = _predict_held_out(x, z, subjects, held_out, rank)
        products[: predicted.shape[1]] += (predicted * true).sum(0)
        squares[: predicted.shape[1]] += predicted.square().sum(0)
    on_progress()
    alpha = (products / squares.clamp(min=1e-30)).clamp(0, 1)
    coordinates, directions = principal_components(z, rank)
    fit, shrinkage = fit_ridge(x, coordinates[subjects], subject_of), alpha[: directions.shape[1]]
    total = z[subjects].square().sum().clamp(min=1e-30)
    explained_variance = (2 * alpha * products - alpha.square() * squares).sum() / total
    captured_variance = coordinates.square().sum() / z.square().sum().clamp(min=1e-30)
    return LinearRegression(
        weight=shrinkage[:, None] * fit.weight,
        bias=shrinkage * fit.bias,
        directions=directions,
        captured_variance=captured_variance.item(),
        explained_variance=explained_variance.item(),
    )


def _predict_held_out(
    x: Tensor, z: Tensor, subjects: Tensor, held_out: Tensor, rank: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return prediction and truth ``[rows held out, k]``, along directions and by a regression fitted on the others."""
    others = torch.unique(subjects[~held_out])
    _, directions = principal_components(z[others] - z[others].mean(0), rank)
    coordinates = (z @ directions)[subjects]
    fit = fit_ridge(x[~held_out], coordinates[~held_out], subjects[~held_out].tolist())
    return fit(x[held_out]), coordinates[held_out]


def principal_components(z: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return coordinates ``[P, k]`` and directions ``[N, k]`` of most variance around zero, k at most P and N.

    ``z ~ coordinates directions^T``, and the directions are orthonormal. They are computed from the P x P matrix
    ``z z^T``, since there are far more parameters than subjects.

    Args:
        z: ``[P, N]``.
        rank: the largest k.
    """
    wide = z.double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    rank = min(rank, len(z), z.shape[1])
    keep = values[-rank:] > 1e-12 * values[-1].clamp(min=1e-300)
    coordinates = vectors[:, -rank:][:, keep] * values[-rank:][keep].sqrt()
    directions = wide.mT @ coordinates / values[-rank:][keep]
    return coordinates.flip(1).to(z.dtype), directions.flip(1).to(z.dtype)
