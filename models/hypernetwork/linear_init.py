"""A linear guess of low rank at very many numbers of few people, that says honestly how much it foretells.

| symbol | meaning                                                                  |
|--------|--------------------------------------------------------------------------|
| X      | features of pictures, ``[R, F]``                                          |
| Z      | what people are, around the mean person, ``[P, N]``, N far larger than P   |
| V      | the k directions in which people differ most, ``[N, k]``                   |

``z^ = V alpha (W x + b)``: the coordinates ``V^T z`` are regressed on features, see :mod:`.ridge`. Directions that come
from few people, whose numbers are half chance, point half into chance; what is foretold along them is shrunk by alpha
``= E[p q] / E[p^2]``, p the guess and q the truth of people of whom neither V nor W knew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .ridge import FOLDS, fit_ridge


@dataclass(frozen=True)
class LinearRegression:
    """A fitted guess.

    Args:
        weight, bias: alpha W ``[k, F]`` and alpha b ``[k]``.
        directions: V.
        spanned: share of how people differ that lies along V.
        foretold: share of it that the guess foretells of people left out.
    """

    weight: Tensor
    bias: Tensor
    directions: Tensor
    spanned: float
    explained_variance: float


def fit_linear(
    x: Tensor, z: Tensor, person: Sequence[int], rank: int, alive: Callable[[], None] = lambda: None
) -> LinearRegression:  # fmt: skip
    """The guess of ``rank`` directions.

    Args:
        x: a row for each picture.
        z: a row for each person, of mean zero.
        person: of each picture, its row in ``z``.
        alive: called now and then: thousands of people take a minute.
    """
    place, folds = torch.as_tensor(person), min(FOLDS, len(z))
    both, squares = z.new_zeros(rank), z.new_zeros(rank)
    for fold in range(folds):
        alive()
        held = place % folds == fold
        guessed, true = _left_out(x, z, place, held, rank)
        both[: guessed.shape[1]] += (guessed * true).sum(0)
        squares[: guessed.shape[1]] += guessed.square().sum(0)
    alive()
    alpha = (both / squares.clamp(min=1e-30)).clamp(0, 1)
    coordinates, directions = principal(z, rank)
    found, alpha_here = fit_ridge(x, coordinates[place], person), alpha[: directions.shape[1]]
    total = z[place].square().sum().clamp(min=1e-30)
    explained_variance = (2 * alpha * both - alpha.square() * squares).sum() / total
    spanned = coordinates.square().sum() / z.square().sum().clamp(min=1e-30)
    weight, bias = alpha_here[:, None] * found.weight, alpha_here * found.bias
    return LinearRegression(weight, bias, directions, spanned.item(), explained_variance.item())


def _left_out(x: Tensor, z: Tensor, place: Tensor, held: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Guess and truth of the pictures ``held``, along directions and by a regression of the others."""
    others = torch.unique(place[~held])
    _, directions = principal(z[others] - z[others].mean(0), rank)
    known = (z @ directions)[place]
    found = fit_ridge(x[~held], known[~held], place[~held].tolist())
    return found(x[held]), known[held]


def principal(z: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The ``rank`` directions of most variance of ``z [P, N]`` around zero: ``(coordinates [P, k], directions [N, k])``
    with ``z ~ coordinates directions^T`` and orthonormal directions; k is at most P and N.

    By way of the P x P matrix ``z z^T``: there are far more numbers than people.
    """
    wide = z.double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    rank = min(rank, len(z), z.shape[1])
    keep = values[-rank:] > 1e-12 * values[-1].clamp(min=1e-300)
    coordinates = vectors[:, -rank:][:, keep] * values[-rank:][keep].sqrt()
    directions = wide.mT @ coordinates / values[-rank:][keep]
    return coordinates.flip(1).to(z.dtype), directions.flip(1).to(z.dtype)
