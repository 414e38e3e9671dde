"""Adapter files as ComfyUI's stock loaders see them: tensors by name, one layer at a time, and no header.

A plain LoRA, or whole differences alone, bear stock names and are none of ours. Ours are those of other families, and
chains: ``<place>/<layer>.<tensor>``. What is done to a layer follows from the names alone.
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

_NAME = re.compile(r"(?:(?P<place>[1-9]\d*)/)?(?P<layer>.+?)\.(?P<tensor>basis|lora_up\.weight|diff)")
_OURS = re.compile(rf"{PACKED}|{LAYOUT}|[1-9]\d*/.+|embedding/.+/.+")
"""Names that no other program gives."""
_PACKED = re.compile(rf"(?P<prefix>(?:[1-9]\d*/)?)(?:{PACKED}|{LAYOUT})")
_FAMILY = {"basis": PaRa.family, "lora_up.weight": LoRA.family, "diff": Full.family}


@dataclass(frozen=True)
class AdapterPart:
    """What one link of a file does to one layer.

    Args:
        prefix: the link's, ``2/``, or nothing where the file is a single link.
        adapter: of a packed link, taken out of it; None if the layer has tensors of its own.
        family: of a link with tensors of its own.
    """

    prefix: str
    family: str = PaRa.family
    adapter: AdapterLayer | None = None


def parts_by_layer(tensors: Mapping[str, Tensor]) -> dict[str, list[AdapterPart]]:
    """Layer -> what the file's links do to it, in order; empty if the file is none of ours.

    Raises:
        ValueError: a link is missing, or a packed one cannot be read, or is in other bases than it would be here.
    """
    found: dict[str, dict[int, AdapterPart]] = {}
    for name in tensors:
        match = _NAME.fullmatch(name)
        if match and (match["place"] or match["tensor"] == "basis"):
            prefix = f"{match['place']}/" if match["place"] else ""
            part = AdapterPart(prefix, _FAMILY[match["tensor"]])
            found.setdefault(match["layer"], {})[int(match["place"] or 1)] = part
        elif (prefix := _packed_at(name, tensors)) is not None:
            for layer, adapter in _unpacked(tensors, prefix).items():
                found.setdefault(layer, {})[int(prefix.rstrip("/") or 1)] = AdapterPart(prefix, adapter=adapter)
    places = {place for by_place in found.values() for place in by_place}
    if places != set(range(1, len(places) + 1)):
        raise ValueError(f"the adapter file holds the links {sorted(places)} of a chain; one is missing, save it again")
    return {layer: [by_place[place] for place in sorted(by_place)] for layer, by_place in found.items()}


def _packed_at(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The prefix of the packed link that ``name`` stands for; of a link's two tensors that is the first.

    Where only one of them is left, the file is ours, and damaged, if no tensor has another program's name.
    """
    if not (match := _PACKED.fullmatch(name)):
        return None
    prefix = match["prefix"]
    if {prefix + PACKED, prefix + LAYOUT} <= tensors.keys():
        return prefix if name == prefix + PACKED else None
    return prefix if all(map(_OURS.fullmatch, tensors)) else None


def _unpacked(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, AdapterLayer]:
    try:
        return unpack_adapter(tensors, prefix).layers
    except ValueError as error:
        raise ValueError(f"the adapter file {error}") from error


@torch.no_grad()
def read_updates(tensors: Mapping[str, Tensor], layer: str, part: AdapterPart) -> tuple[list[WeightUpdate], set[str]]:
    """The steps of ``part`` on ``layer``, in float32, and the names of the tensors they came from.

    Raises:
        ValueError: a tensor is missing, or holds what no adapter's does.
    """
    if part.adapter is not None:
        return [part.adapter.weight_update()], {part.prefix + PACKED, part.prefix + LAYOUT}
    codec = LAYER_CODECS[part.family]
    names = [f"{part.prefix}{layer}.{name}" for name in codec.tensor_names]
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"the adapter file lacks {', '.join(missing)}; it is not whole")
    try:
        own = [validation.checked_tensor(tensors[name], name) for name in names]
        values = dict(zip(codec.tensor_names, own, strict=True))
        adapter = codec.decode(values, codec.weight_shape(values))
    except ValueError as error:
        raise ValueError(f"the adapter file, at {layer}: {error}") from error
    return [adapter.weight_update()], set(names)
