"""Adapter files as ComfyUI's stock loaders see them: tensors by name, one layer at a time, and no header.

A plain LoRA, or full differences alone, have stock names and need no reader of this pack. Files of this pack's own
format are those of other families, and stacks: ``<position>/<layer>.<tensor>``. The names alone determine what is done
to a layer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import validation
from ..adapters import AdapterLayer, Full, LoRA, PaRa
from ..adapters.weight_update import WeightUpdate
from .family_codecs import LAYER_CODECS
from .packing import LAYOUT, PACKED, unpack_adapter

_NAME = re.compile(r"(?:(?P<position>[1-9]\d*)/)?(?P<layer>.+?)\.(?P<tensor>basis|lora_up\.weight|diff)")
_OWN_NAME = re.compile(rf"{PACKED}|{LAYOUT}|[1-9]\d*/.+|embedding/.+/.+")
"""Names that no other program writes."""
_PACKED = re.compile(rf"(?P<prefix>(?:[1-9]\d*/)?)(?:{PACKED}|{LAYOUT})")
_FAMILY = {"basis": PaRa.family, "lora_up.weight": LoRA.family, "diff": Full.family}


@dataclass(frozen=True)
class AdapterPart:
    """One adapter of a file on one layer.

    Args:
        prefix: of the adapter's tensors, ``2/``; empty if the file holds a single adapter.
        family: of an adapter whose layers have tensors of their own.
        adapter: the layer of a packed adapter; None if the layer has tensors of its own.
    """

    prefix: str
    family: str = PaRa.family
    adapter: AdapterLayer | None = None


def parts_by_layer(tensors: Mapping[str, Tensor]) -> dict[str, list[AdapterPart]]:
    """Return layer -> the adapters on it, in the order of the stack; empty if the file is in no format of this pack.

    Raises:
        ValueError: an adapter of the stack is missing, or a packed one is damaged or was trained in other random bases.
    """
    found: dict[str, dict[int, AdapterPart]] = {}
    for name in tensors:
        match = _NAME.fullmatch(name)
        if match and (match["position"] or match["tensor"] == "basis"):
            prefix = f"{match['position']}/" if match["position"] else ""
            part = AdapterPart(prefix, _FAMILY[match["tensor"]])
            found.setdefault(match["layer"], {})[int(match["position"] or 1)] = part
        elif (prefix := _packed_prefix(name, tensors)) is not None:
            with validation.error_context("the adapter file "):
                layers = unpack_adapter(tensors, prefix).layers
            for layer, adapter in layers.items():
                found.setdefault(layer, {})[int(prefix.rstrip("/") or 1)] = AdapterPart(prefix, adapter=adapter)
    positions = {position for parts in found.values() for position in parts}
    if positions != set(range(1, len(positions) + 1)):
        raise ValueError(
            f"the adapter file holds the adapters {sorted(positions)} of a stack; one is missing, save it again"
        )
    return {layer: [parts[position] for position in sorted(parts)] for layer, parts in found.items()}


def _packed_prefix(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the prefix of the packed adapter for the first of its two tensors; None for all other names.

    If one of the two is missing, the file counts as a damaged file of this pack, provided that no tensor has a name of
    another program.
    """
    if not (match := _PACKED.fullmatch(name)):
        return None
    prefix = match["prefix"]
    if {prefix + PACKED, prefix + LAYOUT} <= tensors.keys():
        return prefix if name == prefix + PACKED else None
    return prefix if all(map(_OWN_NAME.fullmatch, tensors)) else None


@torch.no_grad()
def read_updates(tensors: Mapping[str, Tensor], layer: str, part: AdapterPart) -> tuple[list[WeightUpdate], set[str]]:
    """Return the weight updates of ``part`` on ``layer``, in float32, and the names of the tensors they were read from.

    Args:
        tensors: all tensors of the file.
        layer: name of the layer.
        part: one of :func:`parts_by_layer` for that layer.

    Raises:
        ValueError: a tensor is missing or damaged.
    """
    if part.adapter is not None:
        return [part.adapter.weight_update()], {part.prefix + PACKED, part.prefix + LAYOUT}
    codec = LAYER_CODECS[part.family]
    names = {key: f"{part.prefix}{layer}.{key}" for key in codec.tensor_names}
    if missing := [name for name in names.values() if name not in tensors]:
        raise ValueError(f"the adapter file lacks {', '.join(missing)}; it is not whole")
    with validation.error_context(f"the adapter file, at {layer}: "):
        values = {key: validation.checked_tensor(tensors[name], name) for key, name in names.items()}
        adapter = codec.decode(values, codec.weight_shape(values))
    return [adapter.weight_update()], set(names.values())
