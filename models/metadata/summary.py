"""What is in an adapter, in words and numbers."""

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..adapters import PaRa
from ..adapters.stack import AdapterStack, WeightOf, base_weight
from ..adapters.weight_update import WeightUpdate, is_dense, total_delta, total_low_rank_factors
from .base_fingerprint import MADE_FOR

_BLOCK = re.compile(r"^(?:diffusion_model|text_encoders)\.(?:.*?)(middle_block|\w+?_?blocks?\.\d+|layers\.\d+)")

OUTPUTS_PER_RANK = 40
"""A layer of d outputs should lose at most d / 40 directions in all (PaRa, arXiv 2406.05641)."""


def summary(adapter: AdapterStack) -> str:
    """Families, settings, size, what to beware of, and history, a line each."""
    lines = [f"{place}. {link.describe()}: {link.describe_size()}" for place, link in enumerate(adapter.adapters, 1)]
    lines += [f"{word.describe()}: {word.describe_size()}" for word in adapter.embeddings]
    warning = removal_warning(adapter)
    lines += [f"warning: {warning}"] if warning else []
    lines += _facts(adapter.metadata)
    return "\n".join(lines)


def _facts(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    """A line each; of a combined adapter, then those of its parts."""
    lines = [
        f"{indent}{name}: {_time(value) if name in ('started', 'finished') else value}"
        for name, value in facts.items() if name not in ("parts", MADE_FOR) and value not in (None, [], "")
    ]  # fmt: skip
    for place, part in enumerate(facts.get("parts", ()), 1):
        lines += [f"part {place}:", *_facts(part, "  ")]
    return lines


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


@torch.no_grad()
def change_per_block(adapter: AdapterStack, weight_of: WeightOf | None = None) -> dict[str, float]:
    """Mean over a block's layers of ``||dW||_F``, relative to ``||W||_F`` if the weights are given.

    ``||up down||_F^2 = <up^T up, down down^T>``: no matrix of the weight's size is built for low-rank families.
    """
    changes = {name: _norm(name, adapter.weight_updates_of(name), weight_of) for name in adapter.targets()}
    blocks: dict[str, list[float]] = {}
    for name in adapter.targets():
        change = changes[name]
        if weight_of is not None:
            change /= max(weight_of(name).float().norm().item(), 1e-12)
        blocks.setdefault(block_of(name), []).append(change)
    return {block: sum(changes) / len(changes) for block, changes in blocks.items()}


def _norm(name: str, steps: Sequence[WeightUpdate], weight_of: WeightOf | None) -> float:
    """``||dW||_F`` of a layer."""
    weight = base_weight(name, steps, weight_of)
    if is_dense(steps):
        return total_delta(steps, weight).norm().item()
    up, down = total_low_rank_factors(steps, weight)
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt().item()


def block_of(name: str) -> str:
    """The block a layer belongs to: ``input_blocks.4``, ``middle_block``, ``double_blocks.7``, ``layers.3``."""
    match = _BLOCK.match(name)
    return match.group(1) if match else name.removeprefix(f"{name.split('.')[0]}.").split(".")[0]


def removed_rank(adapter: AdapterStack) -> dict[str, int]:
    """Layer name -> the most directions of its output that the chain's PaRa links remove together."""
    removed: dict[str, int] = {}
    for link in adapter.adapters:
        for name, part in link.layers.items():
            if isinstance(part, PaRa):
                removed[name] = removed.get(name, 0) + part.rank
    return removed


def removal_warning(adapter: AdapterStack) -> str | None:
    """A sentence that names the worst layer, if any loses more than its share; else None."""
    outputs = {name: target.matrix_shape[0] for name, target in adapter.targets().items()}
    removed = removed_rank(adapter)
    over = [name for name, rank in removed.items() if rank * OUTPUTS_PER_RANK > outputs[name]]
    if not over:
        return None
    worst = max(over, key=lambda name: removed[name] / outputs[name])
    return (
        f"PaRa removes {removed[worst]} of the {outputs[worst]} directions of {worst}, and on {len(over)} layers more "
        f"than a fortieth, beyond which a model loses what it knew; lower the rank, or combine fewer"
    )
