"""What a link does to a weight: the three ways of change, whatever family they come from.

With ``W [out, in]`` the weight that the links before it have made (a convolution's kernel flattened) and ``s`` the
strength:

| step         | change of the weight | families   |
|--------------|----------------------|------------|
| `Sum`        | ``s up @ down``      | LoRA, LiDB |
| `Projection` | ``-s q q^T W``       | PaRa       |
| `Difference` | ``s D``              | full       |

The first two have factors ``(up, down)`` of low rank, ``dW = up @ down``, so that a plain LoRA can hold them.
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
        return self.up, self.down

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return self.up @ self.down


class ProjectOut(NamedTuple):
    """``W - s q q^T W``, with ``q [..., out, r]`` of orthonormal columns."""

    q: Tensor

    def low_rank_factors(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(-q, q^T W)``: a plain LoRA for this one W.

        Raises:
            ValueError: no weight is given.
        """
        if weight is None:
            raise ValueError(
                "the adapter removes directions from the model's weights (PaRa), so that its change depends on them; "
                "connect the model it was trained on"
            )
        return -self.q, self.q.mT @ weight

    def delta(self, weight: Tensor | None = None) -> Tensor:
        up, down = self.low_rank_factors(weight)
        return up @ down


class AddDense(NamedTuple):
    """``W + s D``, with ``D [out, in]``."""

    diff: Tensor

    def low_rank_factors(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """There are none of low rank.

        Raises:
            ValueError: always; the message says what to do instead.
        """
        raise ValueError(
            "the adapter holds full differences of weights, which no LoRA can hold; save it as 'hyperbooth' or "
            "'comfyui', or apply it and use Save Checkpoint"
        )

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return self.diff


WeightUpdate = AddLowRank | ProjectOut | AddDense


def apply_updates(weight: Tensor, steps: Iterable[WeightUpdate], strength: float = 1.0) -> Tensor:
    """``weight [out, in]`` after ``steps``, each at ``strength``, in their order: methods.md 8."""
    for step in steps:
        weight = weight + strength * step.delta(weight)
    return weight


def depends_on_weight(steps: Iterable[WeightUpdate]) -> bool:
    """Whether the same steps change another weight by something else."""
    return any(isinstance(step, ProjectOut) for step in steps)


def is_dense(steps: Iterable[WeightUpdate]) -> bool:
    """Whether the change has no low rank."""
    return any(isinstance(step, AddDense) for step in steps)


def total_delta(steps: Iterable[WeightUpdate], weight: Tensor | None, strength: float = 1.0) -> Tensor:
    """``W_n - W_0`` after the steps, each at ``strength``, ``[out, in]``; ``weight`` is W_0, needed if they depend on
    it."""
    change: Tensor | None = None
    for step in steps:
        now = weight if weight is None or change is None else weight + change
        more = strength * step.delta(now)
        change = more if change is None else change + more
    if change is None:
        raise ValueError("a layer without a step has no change")
    return change


def total_low_rank_factors(steps: Iterable[WeightUpdate], weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(up [out, r], down [r, in])`` of ``W_n - W_0 = sum_i up_i down_i``: the factors stand side by side, and the
    rank is their sum."""
    ups, downs = [], []
    for step in steps:
        up, down = step.low_rank_factors(weight)
        ups.append(up)
        downs.append(down)
        weight = None if weight is None else torch.addmm(weight, up, down)
    return torch.cat(ups, dim=-1), torch.cat(downs, dim=-2)
