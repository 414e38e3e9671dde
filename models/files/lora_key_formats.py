"""The names and forms in which other tools keep a plain LoRA.

A dialect differs in the name of a layer, in the names of its tensors, and in whether there is an alpha. A layer that
another tool keeps as several (q, k, v of one fused projection) is written as several: ``W + up @ down`` changes
rows ``i .. j`` by ``up[i:j] @ down``, so that every part gets the same ``down`` and its own rows of ``up``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LoRA
from ..adapters.stack import Adapter, AdapterStack, WeightOf, base_weight
from ..adapters.weight_update import is_dense, total_delta
from .family_codecs import LAYER_CODECS


@dataclass(frozen=True)
class KeyFormat:
    """What follows a layer's name in a file; ``alpha`` is empty where the dialect has none (scale 1)."""

    up: str
    down: str
    alpha: str = ""


KOHYA = KeyFormat(".lora_up.weight", ".lora_down.weight", ".alpha")
PEFT = KeyFormat(".lora_B.weight", ".lora_A.weight")
DIFFUSERS = KeyFormat(".lora.up.weight", ".lora.down.weight")
PROCESSOR = KeyFormat("_lora.up.weight", "_lora.down.weight")
"""diffusers' attention processors, ``attn1.processor.to_q_lora.up.weight``."""
TEXT_LAYER = KeyFormat(".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight")
NAMED_PEFT = KeyFormat(".lora_B.default.weight", ".lora_A.default.weight")
BARE = KeyFormat(".lora_B", ".lora_A")
KEY_FORMATS = (KOHYA, PEFT, DIFFUSERS, PROCESSOR, TEXT_LAYER, NAMED_PEFT, BARE)
"""Every spelling that ComfyUI's stock loader reads."""
DIFFERENCE = ".diff"
"""The end of the name of a whole difference of a weight, in every dialect."""


@dataclass(frozen=True)
class KeyTarget:
    """Where a dialect's name leads.

    Args:
        layer: our name of the layer.
        rows: ``(first, count)`` if the name stands for a part of the layer.
        swapped: the dialect keeps the two halves of the rows the other way round (scale and shift of a modulation).
    """

    layer: str
    rows: tuple[int, int] | None = None
    swapped: bool = False


@dataclass(frozen=True)
class KeyName:
    """A name in a file: how it is written and where it leads."""

    stem: str
    target: KeyTarget
    format: KeyFormat = KOHYA


def as_plain_lora(adapter: AdapterStack, weight_of: WeightOf | None = None) -> Adapter:
    """The chain as one LoRA: itself if it is one, so that its alpha stays, or the sum of its links at scale 1.

    Args:
        weight_of: layer name -> the base's weight, for chains whose change depends on it.

    Raises:
        ValueError: a family of the chain has no low-rank form, or needs the base.
    """
    if [link.family for link in adapter.adapters] == [LoRA.family]:
        return adapter.adapters[0]
    plain = {name: LoRA(up, down, alpha=up.shape[-1]) for name, (up, down) in adapter.as_lora(weight_of).items()}
    return Adapter(LoRA.family, plain, adapter.targets())


def comfyui_tensors(adapter: AdapterStack, weight_of: WeightOf | None = None) -> dict[str, Tensor]:
    """The chain in ComfyUI's own names: a plain LoRA, and a whole difference where a layer has no low rank."""
    targets, all_steps = adapter.targets(), adapter.weight_updates()
    dense = {name: steps for name, steps in all_steps.items() if is_dense(steps)}
    low_rank = adapter.select_layers(targets.keys() - dense.keys())
    tensors = layer_tensors(as_plain_lora(low_rank, weight_of)) if low_rank.adapters else {}
    for name, steps in dense.items():
        change = total_delta(steps, base_weight(name, steps, weight_of))
        tensors[name + DIFFERENCE] = change.reshape(targets[name].shape)
    return tensors


def layer_tensors(link: Adapter) -> dict[str, Tensor]:
    """``<layer>.<tensor>`` -> tensor, in the form that the family keeps in files."""
    return {
        f"{name}.{key}": tensor
        for name, adapter in link.layers.items()
        for key, tensor in LAYER_CODECS[link.family].encode(adapter, link.targets[name].shape).items()
    }


def format_keys(link: Adapter, names: Mapping[str, Sequence[KeyName]], dialect: str) -> dict[str, Tensor]:
    """The tensors of a plain LoRA under the dialect's ``names``: layer -> its name, or names of its parts.

    A layer that the dialect cannot name is left out if the LoRA does not change it.

    Raises:
        ValueError: the dialect has no name for a layer that changes; all such layers are listed.
    """
    nameless = [layer for layer, adapter in link.layers.items() if layer not in names and adapter.up.any()]
    if nameless:
        raise ValueError(
            f"format {dialect!r} has no name for {len(nameless)} of the adapter's {len(link.layers)} layers: "
            f"{', '.join(nameless)}; save it in format 'comfyui' or 'hyperbooth', which name every layer"
        )
    return {
        key: tensor
        for layer, adapter in link.layers.items()
        for name in names.get(layer, ())
        for key, tensor in _part(adapter, name, link.targets[layer].shape).items()
    }


def _part(adapter: LoRA, name: KeyName, shape: tuple[int, ...]) -> dict[str, Tensor]:
    up, down, alpha = LAYER_CODECS[LoRA.family].encode(adapter, shape).values()
    if name.target.rows is not None:
        first, count = name.target.rows
        up, down = up[first : first + count], down.clone()  # a file holds no tensor twice
    if name.target.swapped:
        up = swap_halves(up)
    if name.format.alpha:
        return {
            name.stem + name.format.up: up,
            name.stem + name.format.down: down,
            name.stem + name.format.alpha: alpha,
        }
    return {name.stem + name.format.up: up * (adapter.alpha / adapter.rank), name.stem + name.format.down: down}


def swap_halves(rows: Tensor) -> Tensor:
    """``[a; b] -> [b; a]``, its own inverse."""
    return torch.cat(rows.chunk(2)[::-1])
