"""How far a stack and its plain LoRA differ at strengths other than the one the LoRA was made at.

With strength s, ``AddLowRank`` and ``ProjectOut`` in this order give

    dW(s) = s (U D - q q^T W) - s^2 q q^T U D

whereas the plain LoRA made of it at strength 1 and used at s changes the weight by ``s dW(1)``. The two agree at s = 0
and s = 1 only. A stack without a ``ProjectOut`` after another update is linear in s, and agrees everywhere.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .stack import AdapterStack, WeightOf
from .weight_update import (
    ProjectOut,
    WeightUpdate,
    depends_on_weight,
    is_dense,
    low_rank_squared_norm,
    total_delta,
    total_low_rank_factors,
)

USES = (0.8, 0.5)
"""Strengths of use that are measured, relative to the one that the LoRA is made at."""


def is_nonlinear(adapter: AdapterStack) -> bool:
    """Whether the stack's change is not proportional to its strength."""
    return any(
        isinstance(update, ProjectOut) for name in adapter.targets() for update in adapter.weight_updates_of(name)[1:]
    )


class StrengthError:
    """Measures the error of a plain LoRA at the strengths :data:`USES`, while the LoRA is made.

    It stands in for ``weight_of`` of the conversion: each weight is read once and measured when the conversion asks
    for it, and none is kept.

    Args:
        adapter: the stack that is converted.
        weight_of: weights of the base model by layer name.
        strength: s, at which the LoRA is made.
    """

    def __init__(self, adapter: AdapterStack, weight_of: WeightOf, strength: float = 1.0):
        self._adapter, self._weight_of, self._strength = adapter, weight_of, strength
        self._squared = {use: [0.0, 0.0] for use in USES}
        self._measured: set[str] = set()

    def __call__(self, name: str) -> Tensor:
        """Return the weight of a layer, after measuring it."""
        weight = self._weight_of(name)
        self._measure(name, weight.float().flatten(1))
        return weight

    def relative(self) -> dict[float, float]:
        """Return use -> ``||use dW(s) - dW(use s)||_F / ||dW(use s)||_F`` over all layers."""
        for name in self._adapter.targets().keys() - self._measured:
            if not depends_on_weight(self._adapter.weight_updates_of(name)):
                self._measure(name, None)
        return {use: math.sqrt(error / total) if total else 0.0 for use, (error, total) in self._squared.items()}

    @torch.no_grad()
    def _measure(self, name: str, weight: Tensor | None) -> None:
        if name in self._measured:
            return
        self._measured.add(name)
        updates = self._adapter.weight_updates_of(name)
        for use, squared in self._squared.items():
            for index, value in enumerate(self._squares(updates, weight, use)):
                squared[index] += value

    def _squares(self, updates: Sequence[WeightUpdate], weight: Tensor | None, use: float) -> tuple[float, float]:
        """Return ``(||use dW(s) - dW(use s)||^2, ||dW(use s)||^2)`` of a layer; in float64, because most cancels."""
        strength = self._strength
        if is_dense(updates):
            exact = total_delta(updates, weight, use * strength).double()
            error = use * total_delta(updates, weight, strength).double() - exact
            return error.square().sum().item(), exact.square().sum().item()
        up, down = (factor.double() for factor in total_low_rank_factors(updates, weight, strength))
        exact_up, exact_down = (factor.double() for factor in total_low_rank_factors(updates, weight, use * strength))
        error = low_rank_squared_norm(torch.cat([use * up, -exact_up], -1), torch.cat([down, exact_down], -2))
        return error, low_rank_squared_norm(exact_up, exact_down)
