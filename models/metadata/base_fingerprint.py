"""Which base a change was made for: of a PaRa written down as a LoRA, ``(-Q, Q^T W)``, W is part of the file; what a
hypernetwork predicts is for the base that its bank was trained on."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..adapters.stack import AdapterStack, WeightOf
from ..adapters.weight_update import depends_on_weight

MADE_FOR = "made_for"
Fingerprint = Mapping[str, Sequence[float]]
"""Layer -> some numbers of its weight."""
MAX_LAYERS, VALUES_PER_LAYER = 256, 4
"""How much of a base is kept: so many numbers of so many layers."""
SAME_BASE = 0.005
"""Relative distance up to which two bases count as one: float16 rounds by 0.0003, bfloat16 by 0.002; fp8 by 0.03, which
is another base."""


def with_fingerprint(adapter: AdapterStack, weight_of: WeightOf) -> AdapterStack:
    """``adapter`` with a sample of its base among the facts, if what it changes depends on the base."""
    dependent = sorted(name for name, steps in adapter.weight_updates().items() if depends_on_weight(steps))
    if not dependent:
        return adapter
    return replace(
        adapter,
        metadata={
            **adapter.metadata,
            MADE_FOR: [*recorded_fingerprints(adapter.metadata), fingerprint(dependent, weight_of)],
        },
    )


def fingerprint(layers: Sequence[str], weight_of: WeightOf, most: int = MAX_LAYERS) -> Fingerprint:
    """Some numbers of the weights of up to ``most`` of ``layers``, spread over them."""
    return {name: _sample(name, weight_of) for name in layers[:: max(1, -(-len(layers) // most))]}


def recorded_fingerprints(facts: Mapping[str, Any]) -> list[Fingerprint]:
    """The bases that an adapter, or a part of it, was written down for."""
    return [
        *facts.get(MADE_FOR, ()),
        *(record for part in facts.get("parts", ()) for record in recorded_fingerprints(part)),
    ]


def base_distance(facts: Mapping[str, Any], weight_of: WeightOf, layers: Collection[str]) -> float | None:
    """How far the weights are from one recorded (relative), if that is too far; None if they are the same, or nothing
    is known.

    Args:
        layers: those whose weights can be had.
    """
    found = [
        distance(r, {name: _sample(name, weight_of) for name in r if name in layers})
        for r in recorded_fingerprints(facts)
    ]
    return max((far for far in found if far > SAME_BASE), default=None)


def disagree(facts: Mapping[str, Any]) -> bool:
    """Whether the parts of an adapter were written down for different bases, as far as they name the same layers."""
    return any(distance(first, second) > SAME_BASE for first, second in combinations(recorded_fingerprints(facts), 2))


def distance(first: Fingerprint, second: Fingerprint) -> float:
    """Relative, over the layers that both know; 0 if there is none."""
    both = [name for name in first if name in second and len(first[name]) == len(second[name])]
    ours, theirs = ([number for name in both for number in record[name]] for record in (first, second))
    return math.dist(ours, theirs) / max(math.hypot(*ours), 1e-12) if both else 0.0


class SampledWeights:
    """Read base weights and keep the sampled values of each, so that sampling a weight needs no second read.

    Args:
        weight_of: layer name -> its weight; called once for each call of this object.
    """

    def __init__(self, weight_of: WeightOf):
        self._weight_of = weight_of
        self._samples: dict[str, list[float]] = {}

    def __call__(self, name: str) -> Tensor:
        weight = self._weight_of(name)
        self._samples[name] = _values(weight)
        return weight

    def sample(self, name: str) -> list[float]:
        """Return the sampled values of a weight, which is read if it was not before."""
        if name not in self._samples:
            self(name)
        return self._samples[name]


def _sample(name: str, weight_of: WeightOf) -> list[float]:
    return weight_of.sample(name) if isinstance(weight_of, SampledWeights) else _values(weight_of(name))


def _values(weight: Tensor) -> list[float]:
    """Return values spread evenly over the weight, rounded as they are written into a header."""
    flat = weight.float().flatten()
    places = torch.linspace(0, len(flat) - 1, VALUES_PER_LAYER, dtype=torch.float64).long()
    return [float(f"{number:.5g}") for number in flat[places].tolist()]
