"""What is in an adapter, in words and numbers."""

import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .adapter_set import AdapterSet

_BLOCK = re.compile(r"^(?:diffusion_model|text_encoders)\.(?:.*?)(\w+?_?blocks?\.\d+|middle_block|layers\.\d+)")


def summary(adapter: AdapterSet) -> str:
    """Families, settings, size and history, a line each."""
    lines = [f"{place}. {link.describe()}: {link.describe_size()}" for place, link in enumerate(adapter.chain, 1)]
    lines += _facts(adapter.facts)
    return "\n".join(lines)


def _facts(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    """A line each; of a combined adapter, then those of its parts."""
    lines = [
        f"{indent}{name}: {_time(value) if name in ('started', 'finished') else value}"
        for name, value in facts.items() if name != "parts" and value not in (None, [], "")
    ]  # fmt: skip
    for place, part in enumerate(facts.get("parts", ()), 1):
        lines += [f"part {place}:", *_facts(part, "  ")]
    return lines


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


@torch.no_grad()
def change_per_block(adapter: AdapterSet, weight_of: Callable[[str], Tensor] | None = None) -> dict[str, float]:
    """Mean over a block's layers of ``||dW||_F``, relative to ``||W||_F`` if the weights are given.

    ``||up down||_F^2 = <up^T up, down down^T>``: no matrix of the weight's size is built for low-rank families.
    """
    dense = adapter.dense_changes()
    changes = {name: change.norm().item() for name, change in dense.items()}
    for name, (up, down) in adapter.only(adapter.targets().keys() - dense.keys()).as_lora(weight_of).items():
        changes[name] = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt().item()
    blocks: dict[str, list[float]] = {}
    for name in adapter.targets():
        change = changes[name]
        if weight_of is not None:
            change /= weight_of(name).float().norm().item()
        blocks.setdefault(block_of(name), []).append(change)
    return {block: sum(changes) / len(changes) for block, changes in blocks.items()}


def block_of(name: str) -> str:
    """The block a layer belongs to: ``input_blocks.4``, ``middle_block``, ``double_blocks.7``, ``layers.3``."""
    match = _BLOCK.match(name)
    return match.group(1) if match else name.split(".")[1]
