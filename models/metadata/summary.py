"""Report on an adapter stack: contents, metadata, change per block, rank that PaRa removes."""

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..adapters import PaRa
from ..adapters.stack import AdapterStack, WeightOf, base_weight
from ..adapters.weight_update import WeightUpdate, is_dense, low_rank_squared_norm, total_delta, total_low_rank_factors
from .base_fingerprint import MADE_FOR

_BLOCK = re.compile(r"^(?:diffusion_model|text_encoders)\.(?:.*?)(middle_block|\w+?_?blocks?\.\d+|layers\.\d+)")

OUTPUTS_PER_RANK = 40
"""A layer of d outputs should lose at most d / 40 directions in all (PaRa, arXiv 2406.05641)."""


def summary(adapter: AdapterStack) -> str:
    """Return families, settings, sizes, warnings and metadata, one per line."""
    lines = [f"{i}. {one.describe()}: {one.describe_size()}" for i, one in enumerate(adapter.adapters, 1)]
    lines += [f"{embedding.describe()}: {embedding.describe_size()}" for embedding in adapter.embeddings]
    warning = removal_warning(adapter)
    lines += [f"warning: {warning}"] if warning else []
    lines += _metadata_lines(adapter.metadata)
    return "\n".join(lines)


def _metadata_lines(metadata: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return the entries, one per line, followed by those of the parts of a combined adapter."""
    lines = [
        f"{indent}{name}: {_time(value) if name in ('started', 'finished') else value}"
        for name, value in metadata.items() if name not in ("parts", MADE_FOR) and value not in (None, [], "")
    ]  # fmt: skip
    for i, part in enumerate(metadata.get("parts", ()), 1):
        lines += [f"part {i}:", *_metadata_lines(part, "  ")]
    return lines


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


@torch.no_grad()
def change_per_block(adapter: AdapterStack, weight_of: WeightOf | None = None) -> dict[str, float]:
    """Return block -> mean over its layers of ``||dW||_F``, relative to ``||W||_F`` if ``weight_of`` is given.

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
    """Return the Frobenius norm ``||W_n - W_0||_F`` of a layer's total change."""
    weight = base_weight(name, steps, weight_of)
    if is_dense(steps):
        return total_delta(steps, weight).norm().item()
    up, down = total_low_rank_factors(steps, weight)
    return math.sqrt(low_rank_squared_norm(up, down))


def block_of(name: str) -> str:
    """Return the block of a layer, such as ``input_blocks.4``, ``middle_block`` or ``double_blocks.7``."""
    match = _BLOCK.match(name)
    return match.group(1) if match else name.removeprefix(f"{name.split('.')[0]}.").split(".")[0]


def removed_rank(adapter: AdapterStack) -> dict[str, int]:
    """Return layer -> number of output directions that the PaRa adapters of the stack remove at most."""
    removed: dict[str, int] = {}
    for one in adapter.adapters:
        for name, layer in one.layers.items():
            if isinstance(layer, PaRa):
                removed[name] = removed.get(name, 0) + layer.rank
    return removed


def removal_warning(adapter: AdapterStack) -> str | None:
    """Return a warning that names the worst layer if one loses more than a fortieth of its outputs, else None."""
    outputs = {name: target.matrix_shape[0] for name, target in adapter.targets().items()}
    removed = removed_rank(adapter)
    over = [name for name, rank in removed.items() if rank * OUTPUTS_PER_RANK > outputs[name]]
    if not over:
        return None
    worst = max(over, key=lambda name: removed[name] / outputs[name])
    return (
        f"PaRa removes {removed[worst]} of the {outputs[worst]} directions of {worst}, and on {len(over)} layers more "
        f"than a fortieth, beyond which a model loses prior knowledge; lower the rank, or combine fewer"
    )
