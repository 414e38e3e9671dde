"""Ridge regression in closed form: ``Y = X W^T + b`` with the squares of W held small, and how well it foretells.

| symbol | meaning                                       |
|--------|-----------------------------------------------|
| X      | what is known, ``[P, F]``: features           |
| Y      | what is asked for, ``[P, K]``                 |
| lambda | strength: minimises ``||Y - XW^T||^2 + lambda ||W||^2`` on standardised X |

Every column of Y gets the strength that foretells it best where it was not fitted (cross-validation by group), a
standard error of the gain over the mean subtracted; one without a sure gain stays at the mean. Among many columns of
noise some are foretold by chance, and those would do harm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**power for power in range(-4, 4))
"""In units of X^T X's mean eigenvalue."""
FOLDS = 4


@dataclass(frozen=True)
class Ridge:
    """A fitted regression.

    Args:
        weight: W ``[K, F]`` on X as it is.
        bias: b ``[K]``.
        left_over: share of each column's variance that it does not foretell in cross-validation, ``[K]``; 1 for a
            column that stays at its mean.
    """

    weight: Tensor
    bias: Tensor
    left_over: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT + self.bias


def fit_ridge(x: Tensor, y: Tensor, groups: Sequence[int] | None = None, folds: int = FOLDS) -> Ridge:
    """The regression of ``y`` on ``x``, in float64 and given back in the type of ``y``.

    Args:
        groups: of each row: rows of one group (pictures of one person) are left out together; None if every row is
            its own.

    Raises:
        ValueError: there are fewer groups than two.
    """
    fold_of = _folds(groups if groups is not None else range(len(x)), folds)
    kind, x, y = y.dtype, x.double(), y.double()
    middle, spread = x.mean(0), x.std(0).clamp(min=1e-12)
    x = (x - middle) / spread
    gains, at_mean = y.new_empty(len(STRENGTHS), *y.shape), torch.empty_like(y)
    for fold in range(int(fold_of.max()) + 1):
        held = fold_of == fold
        off = y[held] - y[~held].mean(0)
        at_mean[held] = off.square()
        for place, tried in enumerate(_tried(x, y, held)):
            gains[place, held] = off.square() - (off - tried).square()
    sure = gains.mean(1) - gains.std(1) / len(y) ** 0.5
    best, chosen = sure.max(0)
    columns = torch.arange(y.shape[1])
    weight = torch.stack(list(_weights(x, y)))[chosen, columns]
    weight[best <= 0] = 0
    weight = weight / spread
    gain = gains.mean(1)[chosen, columns] / at_mean.mean(0).clamp(min=1e-300)
    left_over = torch.where(best > 0, 1 - gain, 1.0)
    return Ridge(weight.to(kind), (y.mean(0) - weight @ middle).to(kind), left_over.to(kind))


def _tried(x: Tensor, y: Tensor, held: Tensor) -> Iterator[Tensor]:
    """What each strength, fitted on the others, foretells for those held out, around the others' mean."""
    level = x[~held].mean(0)
    for weight in _weights(x[~held], y[~held]):
        yield (x[held] - level) @ weight.mT


def _weights(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """``W [K, F]`` at each of :data:`STRENGTHS`, of the centred X = U S V^T: ``W^T = V (S^2 + lambda)^-1 S U^T Y``."""
    x, y = x - x.mean(0), y - y.mean(0)
    squares, v, projected = _eigen(x, y)
    unit = squares.mean()
    for strength in STRENGTHS:
        yield (v @ (projected / (squares + strength * unit)[:, None])).mT


def _eigen(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``S^2``, ``V`` and ``S U^T Y``, from the smaller of ``X^T X`` and ``X X^T``: a tenth of an SVD's time."""
    if len(x) < x.shape[1]:
        squares, u = torch.linalg.eigh(x @ x.mT)
        keep = squares > 1e-12 * squares[-1].clamp(min=1e-300)
        squares, u = squares[keep], u[:, keep]
        v = x.mT @ u / squares.sqrt()
        return squares, v, squares.sqrt()[:, None] * (u.mT @ y)
    squares, v = torch.linalg.eigh(x.mT @ x)
    return squares.clamp(min=0), v, v.mT @ (x.mT @ y)


def _folds(groups: Sequence[int], folds: int) -> Tensor:
    """The fold of each row: groups in the order of their first rows, in turn."""
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    if len(number) < 2:
        raise ValueError(f"a regression on {len(number)} groups of rows has nothing to be judged by; give two at least")
    return torch.tensor([number[group] % folds for group in groups])
