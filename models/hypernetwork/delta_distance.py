"""Distances between parameter vectors theta, measured as distances between the weight changes that they describe.

| symbol | meaning                                                                                |
|--------|----------------------------------------------------------------------------------------|
| A, B   | a layer's factors, ``[..., a, r]`` and ``[..., r, b]``: those that LiDB trains          |
| A B    | the layer's change within the random subspace, ``||A B||_F = ||dW||_F`` for LiDB        |

``(c A, B / c)`` is the same change for every c, so distances between factors are meaningless. Products
of size a x b are never built: ``||U V||_F^2 = <U^T U, V V^T>``, two matrices of r x r.
"""

import torch
from torch import Tensor

from ..adapters.parameter_layout import ParameterLayout

MAX_SUBJECTS = 256
"""Largest number of subjects that a variance is taken over, since all pairs of them are compared."""

Factors = list[tuple[Tensor, Tensor]]
"""One pair per distinct layer shape: A ``[..., L, a, r]`` and B ``[..., L, r, b]`` of the L layers of that shape."""


class LayerDeltas:
    """Split theta into factors, stacked over layers of one shape: a few large products replace hundreds of small ones.

    Args:
        layout: of theta ``[..., N]``, for an adapter with two factors per layer (LiDB).
    """

    def __init__(self, layout: ParameterLayout):
        indices = layout.unflatten(torch.arange(layout.parameter_count))
        by_shape: dict[tuple[tuple[int, ...], ...], list[list[Tensor]]] = {}
        for layer, shapes in layout.shapes.items():
            by_shape.setdefault(shapes, []).append(list(indices[layer].values()))
        self._indices = [tuple(map(torch.stack, zip(*layers, strict=True))) for layers in by_shape.values()]

    def __call__(self, theta: Tensor) -> Factors:
        """Return the factors of ``theta [..., N]``, see :data:`Factors`; gradients pass."""
        return [(theta[..., a.to(theta.device)], theta[..., b.to(theta.device)]) for a, b in self._indices]


def delta_distance(first: Factors, second: Factors) -> Tensor:
    """Return ``sum over layers ||A1 B1 - A2 B2||_F^2``, of the factors' leading dimensions ``[...]``.

    It is computed as ``A1 B1 - A2 B2 = [A1 - A2, A2] [B1; B1 - B2]``, which has no cancellation for near products.
    """
    total = 0
    for (a1, b1), (a2, b2) in zip(first, second, strict=True):
        total = total + _squared_norm(torch.cat([a1 - a2, a2.expand_as(a1)], -1), torch.cat([b1, b1 - b2], -2)).sum(-1)
    return total


def delta_variance(subjects: Factors) -> Tensor:
    """Return ``E ||A B - E[A B]||_F^2``, summed over layers: the mean distance to the mean product. Scalar.

    Over subjects i, j it is ``E ||A B||^2 - ||E[A B]||^2``, with ``||E[A B]||^2 = mean of <A_i B_i, A_j B_j>``.

    Args:
        subjects: factors with one leading dimension; the first :data:`MAX_SUBJECTS` are used.
    """
    variance = 0
    for a, b in subjects:
        a, b = a[:MAX_SUBJECTS].double(), b[:MAX_SUBJECTS].double()
        cross_a = torch.einsum("iLar,jLas->ijLrs", a, a)
        cross_b = torch.einsum("iLrb,jLsb->ijLrs", b, b)
        inner = (cross_a * cross_b).sum((-3, -2, -1))
        variance = variance + inner.diagonal().mean() - inner.mean()
    return variance.clamp(min=0)


def _squared_norm(u: Tensor, v: Tensor) -> Tensor:
    """Return ``||U V||_F^2`` of ``U [..., a, k]`` and ``V [..., k, b]``."""
    return ((u.mT @ u) * (v @ v.mT)).sum((-2, -1))
