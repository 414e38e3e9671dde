"""Distances between rows of numbers (theta) as what they do to the model: between the products of their factors.

| symbol | meaning                                                                      |
|--------|------------------------------------------------------------------------------|
| A, B   | a layer's factors, ``[..., a, r]`` and ``[..., r, b]``: LiDB's trained ones    |
| A B    | its change within the random space, ``||A B||_F = ||dW||_F`` for LiDB         |

``(c A, B / c)`` is the same change for every c, so that distances between factors mean nothing (methods.md 3). Products
of a x b are never built: ``||U V||_F^2 = <U^T U, V V^T>``, two matrices of r x r.
"""

import torch
from torch import Tensor

from ..adapters.parameter_layout import ParameterLayout

MOST = 256
"""People that a variance is taken over: pairs of them are compared."""

Factors = list[tuple[Tensor, Tensor]]
"""(A ``[..., L, a, r]``, B ``[..., L, r, b]``) of the L layers of each shape."""


class LayerDeltas:
    """Theta's factors, layers of one shape side by side: a few large products in place of hundreds of small ones.

    Args:
        layout: of a family with two factors (LiDB).
    """

    def __init__(self, layout: ParameterLayout):
        places = layout.unflatten(torch.arange(layout.parameter_count))
        kinds: dict[tuple[tuple[int, ...], ...], list[list[Tensor]]] = {}
        for layer, shapes in layout.shapes.items():
            kinds.setdefault(shapes, []).append(list(places[layer].values()))
        self._places = [tuple(map(torch.stack, zip(*layers, strict=True))) for layers in kinds.values()]

    def __call__(self, theta: Tensor) -> Factors:
        """The factors of ``theta [..., N]``; gradients pass."""
        return [(theta[..., a.to(theta.device)], theta[..., b.to(theta.device)]) for a, b in self._places]


def delta_distance(first: Factors, second: Factors) -> Tensor:
    """``sum over layers ||A1 B1 - A2 B2||_F^2``, ``[...]``.

    ``A1 B1 - A2 B2 = [A1 - A2, A2] [B1; B1 - B2]``: near each other, nothing cancels.
    """
    total = 0
    for (a1, b1), (a2, b2) in zip(first, second, strict=True):
        total = total + _squared(torch.cat([a1 - a2, a2.expand_as(a1)], -1), torch.cat([b1, b1 - b2], -2)).sum(-1)
    return total


def delta_variance(people: Factors) -> Tensor:
    """``E ||A B - E[A B]||_F^2``, summed over layers: what predicting the mean product costs. Scalar.

    Over people i, j: ``E ||A B||^2 - ||E[A B]||^2``, with ``||E[A B]||^2 = mean of <A_i B_i, A_j B_j>``.

    Args:
        people: with one leading dimension; :data:`MOST` of them are taken.
    """
    spread = 0
    for a, b in people:
        a, b = a[:MOST].double(), b[:MOST].double()
        cross_a = torch.einsum("iLar,jLas->ijLrs", a, a)
        cross_b = torch.einsum("iLrb,jLsb->ijLrs", b, b)
        inner = (cross_a * cross_b).sum((-3, -2, -1))
        spread = spread + inner.diagonal().mean() - inner.mean()
    return spread.clamp(min=0)


def _squared(u: Tensor, v: Tensor) -> Tensor:
    """``||U V||_F^2`` of ``U [..., a, k]`` and ``V [..., k, b]``."""
    return ((u.mT @ u) * (v @ v.mT)).sum((-2, -1))
