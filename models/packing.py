"""Many small adapters as one tensor: where names would outweigh the numbers.

A LiDB of SD1.5 has 30,000 numbers in 400 tensors, whose names and places would take 60 KB in a safetensors header. In
a file it is two tensors: ``packed [N]``, all adapters' tensors one after the other, in the order of the layers and of
the family's ``tensor_names``; and ``layout``, bytes: deflated JSON that says which layers, with which shapes.

The layout is a tensor, because ComfyUI's loaders of adapters see tensors only.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import claims
from .adapter_set import Link
from .adapters import FAMILIES, Adapter
from .targets import Target

PACKED, LAYOUT = "packed", "layout"
VERSION = 1
LARGEST_LAYOUT = 1 << 20
"""Bytes of a layout when inflated, which one of a thousandth could fill; 200 layers take 16 KB."""


def packed(link: Link) -> dict[str, Tensor]:
    """``link`` as its two tensors; numbers of adapters stay in the type they have.

    Raises:
        ValueError: there are so many layers that no reader would take the layout.
    """
    kinds: dict[tuple[Any, ...], int] = {}
    of, numbers = {}, []
    for name, adapter in link.adapters.items():
        tensors = list(adapter.to_tensors().values())
        kind = (link.targets[name].shape, *(tuple(tensor.shape) for tensor in tensors))
        of[name] = kinds.setdefault(kind, len(kinds))
        numbers += [tensor.reshape(-1) for tensor in tensors]
    facts = FAMILIES[link.family].link_facts(link.adapters.values())
    layout = {"version": VERSION, "family": link.family, "facts": facts, "kinds": list(kinds), "layers": of}
    text = json.dumps(layout, separators=(",", ":")).encode()
    if len(text) > LARGEST_LAYOUT:
        raise ValueError(f"{len(of)} layers need a layout of {len(text)} bytes; at most {LARGEST_LAYOUT} are read")
    return {
        PACKED: torch.cat(numbers),
        LAYOUT: torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8),
    }


def unpacked(tensors: Mapping[str, Tensor], prefix: str = "") -> Link:
    """The link whose tensors are ``<prefix>packed`` and ``<prefix>layout``; its numbers are float32 of their own.

    Raises:
        ValueError: one is missing, or they do not belong together, or the family reads other numbers in them.
    """
    if missing := [prefix + name for name in (PACKED, LAYOUT) if prefix + name not in tensors]:
        raise ValueError(f"lacks {' and '.join(missing)}; the file is not whole")
    try:
        return _link(layout_of(tensors[prefix + LAYOUT]), tensors[prefix + PACKED])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"has a damaged layout ({error!r:.80}); save it again") from error


def layout_of(tensor: Tensor) -> dict[str, Any]:
    """The layout, inflated to at most :data:`LARGEST_LAYOUT` bytes.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise ValueError(f"holds a layout of {tensor.dtype} and shape {tuple(tensor.shape)}; expected bytes in a row")
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(tensor.cpu().numpy().tobytes(), LARGEST_LAYOUT)
        if not inflate.eof or inflate.unused_data:
            raise ValueError(f"it does not end where it should, or holds more than {LARGEST_LAYOUT} bytes")
        layout = claims.parsed(text.decode())
    except (zlib.error, ValueError) as error:
        raise ValueError(f"has a damaged layout ({error!s:.80}); save it again") from error
    if not isinstance(layout, dict) or layout.get("version") != VERSION:
        raise ValueError(f"has a layout of another version than {VERSION}, which this pack reads; update the pack")
    return layout


def _link(layout: Mapping[str, Any], numbers: Tensor) -> Link:
    kind = _family(layout["family"])
    targets, shapes = _layers(layout, len(kind.tensor_names))
    kind.check_shapes((targets[name].shape, shapes[name]) for name in targets)
    values = iter(_split(numbers, [shape for of_layer in shapes.values() for shape in of_layer]))
    adapters = {}
    for name, target in targets.items():
        try:
            taken = {key: next(values) for key in kind.tensor_names}
            adapters[name] = kind.from_file(taken, target.shape, layout["facts"])
        except ValueError as error:
            raise ValueError(f"is of no use: the adapter of {name} {error}") from error
    kind.check_facts(layout["facts"], adapters.values())
    return Link(kind.family, adapters, targets)


def _family(name: Any) -> type[Adapter]:
    known = {family: kind for family, kind in FAMILIES.items() if kind.packed}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"holds {name!r:.40} in packed form; this pack knows {', '.join(known)}")
    return known[name]


def _layers(layout: Mapping[str, Any], tensors: int) -> tuple[dict[str, Target], dict[str, list[tuple[int, ...]]]]:
    """The targets, and the shapes of each one's tensors."""
    kinds, of = layout["kinds"], layout["layers"]
    for name, place in of.items():
        if type(place) is not int or not 0 <= place < len(kinds) or len(kinds[place]) != 1 + tensors:
            raise ValueError(f"has a layout that gives {name!r:.80} the shapes {place!r:.40}; save it again")
    targets = claims.targets({name: kinds[place][0] for name, place in of.items()})
    shapes = [[claims.shape_of(shape, "a packed tensor") for shape in kind[1:]] for kind in kinds]
    return targets, {name: shapes[place] for name, place in of.items()}


def _split(numbers: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """One tensor of its own for each of ``shapes``, which use up ``numbers``."""
    if any(size < 1 for shape in shapes for size in shape):
        raise ValueError("has a layout with empty tensors; save it again")
    counts = [math.prod(shape) for shape in shapes]
    if numbers.ndim != 1 or sum(counts) != len(numbers):
        raise ValueError(f"holds packed numbers of shape {tuple(numbers.shape)}, its layout is for {sum(counts)}")
    parts = claims.numbers(numbers, PACKED).split(counts)
    return [part.reshape(shape).clone() for part, shape in zip(parts, shapes, strict=True)]
