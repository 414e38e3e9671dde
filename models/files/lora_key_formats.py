"""The key formats in which other tools keep a plain LoRA.

Key formats differ in the names of layers, in the names of a layer's tensors, and in whether there is an alpha. A layer
that another tool keeps as several (q, k, v of one fused projection) is written as several: ``W + up @ down`` changes
rows ``i .. j`` by ``up[i:j] @ down``, hence each part has the same ``down`` and its own rows of ``up``.
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
    """The suffixes of a layer's name in a file; ``alpha`` is empty if the format has none (scale 1)."""

    up: str
    down: str
    alpha: str = ""


KOHYA = KeyFormat(".lora_up.weight", ".lora_down.weight", ".alpha")
PEFT = KeyFormat(".lora_B.weight", ".lora_A.weight")
DIFFUSERS = KeyFormat(".lora.up.weight", ".lora.down.weight")
PROCESSOR = KeyFormat("_lora.up.weight", "_lora.down.weight")
"""Of diffusers' attention processors, ``attn1.processor.to_q_lora.up.weight``."""
TEXT_LAYER = KeyFormat(".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight")
NAMED_PEFT = KeyFormat(".lora_B.default.weight", ".lora_A.default.weight")
BARE = KeyFormat(".lora_B", ".lora_A")
KEY_FORMATS = (KOHYA, PEFT, DIFFUSERS, PROCESSOR, TEXT_LAYER, NAMED_PEFT, BARE)
"""All key formats that ComfyUI's stock loader reads."""
DIFFERENCE = ".diff"
"""The suffix of a full difference of a weight, in every key format."""


@dataclass(frozen=True)
class KeyTarget:
    """The layer, or part of a layer, that a name of a key format stands for.

    Args:
        layer: ComfyUI's name of the layer.
        rows: ``(first, count)`` of the output rows if the name stands for a part of the layer; None for all of it.
        swapped: the format keeps the two halves of the rows in the other order (scale and shift of a modulation).
    """

    layer: str
    rows: tuple[int, int] | None = None
    swapped: bool = False


@dataclass(frozen=True)
class KeyName:
    """The name of a layer in a file.

    Args:
        stem: the name without the suffix of a tensor.
        target: the layer that it stands for.
        format: the suffixes of its tensors.
    """

    stem: str
    target: KeyTarget
    format: KeyFormat = KOHYA


def as_plain_lora(adapter: AdapterStack, weight_of: WeightOf | None = None, strength: float = 1.0) -> Adapter:
    """Return the stack as one LoRA: a single LoRA by its alpha, and any other as the sum at scale 1.

    Args:
        adapter: the stack.
        weight_of: layer name -> weight of the base model, for stacks whose change depends on it.
        strength: of the stack, which the LoRA has at strength 1.

    Raises:
        ValueError: a family of the stack has no low-rank form, or needs the base model.
    """
    if [one.family for one in adapter.adapters] == [LoRA.family]:
        return _scaled_lora(adapter.adapters[0], strength)
    factors = adapter.as_lora(weight_of, strength)
    plain = {name: LoRA(up, down, alpha=up.shape[-1]) for name, (up, down) in factors.items()}
    return Adapter(LoRA.family, plain, adapter.targets())


def _scaled_lora(adapter: Adapter, strength: float) -> Adapter:
    """Return the LoRA with its alphas times ``strength``."""
    if strength == 1:
        return adapter
    layers = {
        n: LoRA(layer.up.detach(), layer.down.detach(), layer.alpha * strength) for n, layer in adapter.layers.items()
    }
    return Adapter(LoRA.family, layers, adapter.targets)


def comfyui_tensors(
    adapter: AdapterStack, weight_of: WeightOf | None = None, strength: float = 1.0
) -> dict[str, Tensor]:
    """Return the stack under ComfyUI's names: a plain LoRA, and full differences of layers without a low-rank form.

    Args:
        adapter: the stack.
        weight_of: layer name -> weight of the base model, for stacks whose change depends on it.
        strength: of the stack, which the file has at strength 1.
    """
    targets = adapter.targets()
    dense = {name: updates for name, updates in adapter.weight_updates().items() if is_dense(updates)}
    low_rank = adapter.select_layers(targets.keys() - dense.keys())
    tensors = layer_tensors(as_plain_lora(low_rank, weight_of, strength)) if low_rank.adapters else {}
    for name, updates in dense.items():
        delta = total_delta(updates, base_weight(name, updates, weight_of), strength)
        tensors[name + DIFFERENCE] = delta.reshape(targets[name].shape)
    return tensors


def layer_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return ``<layer>.<tensor>`` -> tensor, as the family's codec encodes them."""
    codec = LAYER_CODECS[adapter.family]
    return {
        f"{name}.{key}": tensor
        for name, layer in adapter.layers.items()
        for key, tensor in codec.encode(layer, adapter.targets[name].shape).items()
    }


def format_keys(adapter: Adapter, names: Mapping[str, Sequence[KeyName]], key_format: str) -> dict[str, Tensor]:
    """Return the tensors of a plain LoRA under the names of a key format.

    A layer without a name in the format is omitted if the LoRA does not change it.

    Args:
        adapter: the LoRA.
        names: layer -> its name, or the names of its parts.
        key_format: name of the format, for the message.

    Raises:
        ValueError: the format has no name for a layer that the LoRA changes; all such layers are listed.
    """
    nameless = [name for name, layer in adapter.layers.items() if name not in names and layer.up.any()]
    if nameless:
        raise ValueError(
            f"format {key_format!r} has no name for {len(nameless)} of the adapter's {len(adapter.layers)} layers: "
            f"{', '.join(nameless)}; save it in format 'comfyui' or 'hyperbooth', which name every layer"
        )
    return {
        key: tensor
        for name, layer in adapter.layers.items()
        for key_name in names.get(name, ())
        for key, tensor in _named_tensors(layer, key_name, adapter.targets[name].shape).items()
    }


def _named_tensors(layer: LoRA, name: KeyName, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the tensors of the layer, or of its part, that ``name`` stands for."""
    up, down, alpha = LAYER_CODECS[LoRA.family].encode(layer, shape).values()
    if name.target.rows is not None:
        first, count = name.target.rows
        up, down = up[first : first + count], down.clone()  # no two tensors of a file may share memory
    if name.target.swapped:
        up = swap_halves(up)
    if name.format.alpha:
        return {
            name.stem + name.format.up: up,
            name.stem + name.format.down: down,
            name.stem + name.format.alpha: alpha,
        }
    return {name.stem + name.format.up: up * (layer.alpha / layer.rank), name.stem + name.format.down: down}


def swap_halves(rows: Tensor) -> Tensor:
    """Return ``[b; a]`` for ``rows = [a; b]``; the function is its own inverse."""
    return torch.cat(rows.chunk(2)[::-1])


def split_name(name: str) -> tuple[str, str] | None:
    """Return ``(layer's name, role)`` for the name of a LoRA tensor, the role being up, down or alpha."""
    if name.endswith(KOHYA.alpha):
        return name.removesuffix(KOHYA.alpha), "alpha"
    for key_format in KEY_FORMATS:
        for role in ("up", "down"):
            if name.endswith(suffix := getattr(key_format, role)):
                return name.removesuffix(suffix), role
    return None
