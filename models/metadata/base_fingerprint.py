"""Fingerprints of base models: sampled weights that identify the base model an adapter was made for.

A PaRa saved as a LoRA, ``(-Q, Q^T W)``, contains the weight W of its base model; the predictions of a hypernetwork are
for the base model that its subject bank was trained on.
"""

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
"""Layer -> sampled values of its weight."""
FINGERPRINT_LAYERS, VALUES_PER_LAYER = 256, 4
"""Size of a fingerprint."""
SAME_BASE = 0.005
"""Relative distance up to which two base models count as the same.

Rounding to float16 changes weights by 0.0003, to bfloat16 by 0.002, to fp8 by 0.03; a model in fp8 counts as another.
"""


def with_fingerprint(adapter: AdapterStack, weight_of: WeightOf) -> AdapterStack:
    """Return ``adapter`` with a fingerprint of its base model in the metadata, if its change depends on that model."""
    dependent = sorted(name for name, updates in adapter.weight_updates().items() if depends_on_weight(updates))
    if not dependent:
        return adapter
    return replace(
        adapter,
        metadata={
            **adapter.metadata,
            MADE_FOR: [*recorded_fingerprints(adapter.metadata), fingerprint(dependent, weight_of)],
        },
    )


def fingerprint(layers: Sequence[str], weight_of: WeightOf, most: int = FINGERPRINT_LAYERS) -> Fingerprint:
    """Return sampled values of the weights of up to ``most`` layers.

    Args:
        layers: names of the layers; the sampled ones are spread evenly over them.
        weight_of: layer name -> weight of the base model.
        most: bound of the number of layers.
    """
    return {name: _sample(name, weight_of) for name in layers[:: max(1, -(-len(layers) // most))]}


def recorded_fingerprints(metadata: Mapping[str, Any]) -> list[Fingerprint]:
    """Return the fingerprints in the metadata of an adapter and of the parts that it was combined from."""
    return [
        *metadata.get(MADE_FOR, ()),
        *(record for part in metadata.get("parts", ()) for record in recorded_fingerprints(part)),
    ]


def base_distance(metadata: Mapping[str, Any], weight_of: WeightOf, layers: Collection[str]) -> float | None:
    """Return the relative distance of a base model from the recorded fingerprints if it exceeds :data:`SAME_BASE`.

    None means that the base model is the recorded one, or that nothing is recorded.

    Args:
        metadata: of the adapter.
        weight_of: layer name -> weight of the base model.
        layers: the layers that ``weight_of`` can be asked for.
    """
    found = [
        distance(r, {name: _sample(name, weight_of) for name in r if name in layers})
        for r in recorded_fingerprints(metadata)
    ]
    return max((far for far in found if far > SAME_BASE), default=None)


def disagree(metadata: Mapping[str, Any]) -> bool:
    """Return whether parts of an adapter were made for different base models, judged by the layers that they share."""
    return any(
        distance(first, second) > SAME_BASE for first, second in combinations(recorded_fingerprints(metadata), 2)
    )


def distance(first: Fingerprint, second: Fingerprint) -> float:
    """Return the relative distance over the layers of both fingerprints; 0 if there is none."""
    both = [name for name in first if name in second and len(first[name]) == len(second[name])]
    ours, theirs = ([value for name in both for value in record[name]] for record in (first, second))
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
    indices = torch.linspace(0, len(flat) - 1, VALUES_PER_LAYER, dtype=torch.float64).long()
    return [float(f"{value:.5g}") for value in flat[indices].tolist()]
