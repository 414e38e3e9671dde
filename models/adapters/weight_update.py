"""The three kinds of weight update, whatever family they come from.

``W [out, in]`` is the weight after all earlier updates (a convolution's kernel is flattened) and ``s`` the strength:

| update       | change of the weight | families   |
|--------------|----------------------|------------|
| `AddLowRank` | ``s up @ down``      | LoRA, LiDB |
| `ProjectOut` | ``-s q q^T W``       | PaRa       |
| `AddDense`   | ``s D``              | full       |

The first two have low-rank factors ``(up, down)`` with ``dW = up @ down``, which a plain LoRA can hold.
A leading ``...`` dimension is a batch of subjects.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class AddLowRank(NamedTuple):
    """``W + s up @ down``, with ``up [..., out, r]`` and ``down [..., r, in]``."""

    up: Tensor
    down: Tensor

    def low_rank_factors(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(up, down)``; they depend on no weight."""
        return self.up, self.down

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return ``up @ down [..., out, in]``."""
        return self.up @ self.down


class ProjectOut(NamedTuple):
    """``W - s q q^T W``, with ``q [..., out, r]`` of orthonormal columns."""

    q: Tensor

    def low_rank_factors(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(-q, q^T W)``: a plain LoRA for this one ``weight``.

        Raises:
            ValueError: no weight is given.
        """
        if weight is None:
            raise ValueError(
                "the adapter removes directions from the model's weights (PaRa), which makes its change depend on "
                "them; connect the model it was trained on"
            )
        return -self.q, self.q.mT @ weight

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return ``-q q^T W [..., out, in]``.

        Raises:
            ValueError: no weight is given.
        """
        up, down = self.low_rank_factors(weight)
        return up @ down


class AddDense(NamedTuple):
    """``W + s D``, with ``D [out, in]``."""

    diff: Tensor

    def low_rank_factors(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Refuse: a dense update has no factors of low rank.

        Raises:
            ValueError: always; the message says what to do instead.
        """
        raise ValueError(
            "the adapter holds full differences of weights, which no LoRA can hold; save it as 'hyperbooth' or "
            "'comfyui', or apply it and use Save Checkpoint"
        )

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return the difference ``D [out, in]`` itself."""
        return self.diff


WeightUpdate = AddLowRank | ProjectOut | AddDense


def depends_on_weight(updates: Iterable[WeightUpdate]) -> bool:
    """Whether the change that the updates make depends on the weight they are applied to."""
    return any(isinstance(update, ProjectOut) for update in updates)


def is_dense(updates: Iterable[WeightUpdate]) -> bool:
    """Whether the total change has no low rank."""
    return any(isinstance(update, AddDense) for update in updates)


def total_delta(updates: Iterable[WeightUpdate], weight: Tensor | None, strength: float = 1.0) -> Tensor:
    """Return the total change ``W_n - W_0 [out, in]`` of all updates.

    Args:
        updates: in order of application, at least one.
        weight: W_0 ``[out, in]``; needed if :func:`depends_on_weight`.
        strength: factor of every update.

    Raises:
        ValueError: there is no update, or one needs the weight and there is none.
    """
    total: Tensor | None = None
    for update in updates:
        now = weight if weight is None or total is None else weight + total
        delta = strength * update.delta(now)
        total = delta if total is None else total + delta
    if total is None:
        raise ValueError("a layer without an update has no change")
    return total


def total_low_rank_factors(
    updates: Iterable[WeightUpdate], weight: Tensor | None, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return ``(up [out, r], down [r, in])`` of ``W_n - W_0 = sum_i up_i down_i``.

    The factors are concatenated, and r is the sum of the ranks.

    Args:
        updates: in order of application, at least one.
        weight: W_0 ``[out, in]``; needed if :func:`depends_on_weight`.
        strength: factor of every update.

    Raises:
        ValueError: an update has no low rank, or needs the weight and there is none.
    """
    ups, downs = [], []
    for update in updates:
        up, down = update.low_rank_factors(weight)
        up = strength * up if strength != 1 else up
        ups.append(up)
        downs.append(down)
        weight = None if weight is None else torch.addmm(weight, up, down)
    return torch.cat(ups, dim=-1), torch.cat(downs, dim=-2)


def low_rank_squared_norm(up: Tensor, down: Tensor) -> float:
    """Return ``||up @ down||_F^2 = <up^T up, down down^T>``, without a matrix of the weight's size.

    The difference of two products is one product, of ``[up, -up']`` and ``[down; down']``; give it in float64, because
    most of it cancels.
    """
    return max(((up.mT @ up) * (down @ down.mT)).sum().item(), 0.0)
