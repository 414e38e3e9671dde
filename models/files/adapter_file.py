"""Adapter files: safetensors, self-describing, written atomically.

Tensors are named ``<layer>.<tensor of the family>``, where the layer's name is ComfyUI's own, so that a file
holding one LoRA is at once a LoRA that ComfyUI's stock loaders read. A chain of several links prefixes each
with its place, ``1/``, ``2/``, so that no other tool mistakes a part for the whole. Families of very few numbers keep
a link as one tensor, see :mod:`.packing`. Words are named ``embedding/<token>/<text encoder>``. The header's
``hyperbooth`` entry (JSON) holds the format version, the chain in order, the words if there are any, and the facts. A
file without it is read as a plain LoRA of another program, see :mod:`.foreign`.

A file's tensors are no larger than the file, which the safetensors library checks; all else that it says is checked
by :mod:`.claims` before memory is taken for it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import validation
from ..adapters import FAMILIES, AdapterLayer
from ..adapters.stack import Adapter, AdapterStack
from ..adapters.targets import targets_from_header
from ..metadata.prompt_limits import limit_metadata
from ..textual_inversion.embedding_files import (
    embedding_from_header,
    embedding_header_entries,
    native_embedding_tensors,
)
from .family_codecs import LAYER_CODECS, PACKED_CODECS, LayerCodec
from .lora_import import KeyNames, check_is_lora, read_lora
from .lora_key_formats import layer_tensors
from .packing import LAYOUT, PACKED, pack_adapter, unpack_adapter
from .safetensors_io import write_tensors

VERSION = 1
SUFFIXES = (".safetensors", ".sft")
HEADER = "hyperbooth"


def save_adapter(
    adapter: AdapterStack, path: Path, dtype: torch.dtype = torch.float32, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``adapter`` to ``path``.

    Raises:
        ValueError: a value is not finite.
        OSError: the disk is full or the folder cannot be written; the former file, if any, is untouched.
    """
    tensors = cast_for_file(adapter_tensors(adapter), dtype)
    write_tensors(tensors, path, {**(metadata or {}), HEADER: adapter_header(adapter)})


def load_adapter(path: Path, names: KeyNames | None = None) -> AdapterStack:
    """Read a file that :func:`save_adapter` wrote, or a plain LoRA of another program; float32 on the CPU.

    Args:
        names: how to read names that are not ComfyUI's own.

    Raises:
        ValueError: not such a file, of an unknown version or family, or with tensors missing, foreign or of
            another shape; the message lists both sides.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path.name} is no safetensors file; files of other kinds can run code when opened, so none is. "
            "Convert it to safetensors"
        )
    metadata, tensors = _read(path)
    if HEADER not in metadata:
        return read_lora(path.name, tensors, metadata, names or KeyNames())
    try:
        return _from_file(path.name, _header(path.name, metadata[HEADER]), tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(_damaged(path.name, error)) from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header's texts and the tensors, of the kinds that an adapter can be made of."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            validation.check_tensor_names(path.name, names)
            if HEADER not in metadata:
                check_is_lora(path.name, names)
            return metadata, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        why = "".join(letter for letter in str(error)[:200] if letter.isprintable())
        raise ValueError(f"{path.name} is damaged or no safetensors file ({why}); save it again") from error


def adapter_tensors(adapter: AdapterStack) -> dict[str, Tensor]:
    """The tensors of every link and word, as our own format names them."""
    return native_embedding_tensors(adapter.embeddings) | {
        _prefix(adapter, i) + name: tensor
        for i, link in enumerate(adapter.adapters)
        for name, tensor in (pack_adapter(link) if link.family in PACKED_CODECS else layer_tensors(link)).items()
    }


def adapter_header(adapter: AdapterStack) -> str:
    """The entry under :data:`HEADER` that makes a file ours; prompts in it are shortened, see :mod:`.prompts`.

    Raises:
        ValueError: :func:`load_adapter` would not take it.
    """
    chain = [_entry(link) for link in adapter.adapters]
    words = {"words": embedding_header_entries(adapter.embeddings)} if adapter.embeddings else {}
    header = {"version": VERSION, "chain": chain, **words, "facts": limit_metadata(adapter)}
    text = json.dumps(header, ensure_ascii=False)
    try:
        validation.checked_metadata(validation.parse_header(text)["facts"])
    except ValueError as error:
        raise ValueError(f"what is known of the adapter {error}, so that no file could be read again") from error
    return text


def _entry(link: Adapter) -> dict[str, Any]:
    """What the header says of a link; of a packed one its layout says the rest."""
    if link.family in PACKED_CODECS:
        return {"family": link.family}
    return {
        "family": link.family,
        "facts": {},
        "targets": {name: list(target.shape) for name, target in link.targets.items()},
    }


def cast_for_file(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors as a file takes them; bytes, and single numbers (an alpha), stay exact whatever the precision.

    Raises:
        ValueError: a number is none that :func:`load_adapter` would take (a broken run must not reach a file).
    """
    found = {}
    for name, tensor in tensors.items():
        found[name] = (tensor.to(dtype) if tensor.ndim and tensor.is_floating_point() else tensor).contiguous().cpu()
        if not validation.is_finite(found[name]):
            raise ValueError(f"{name} holds {validation.NOT_FINITE}; nothing was written")
    return found


def _prefix(adapter: AdapterStack, place: int) -> str:
    return f"{place + 1}/" if len(adapter.adapters) > 1 else ""


def _damaged(file: str, error: Exception) -> str:
    return f"{file} has a damaged {HEADER!r} header ({error!r:.80}); save it again"


def _header(file: str, text: str) -> Mapping[str, Any]:
    """The header, whose version is ours and whose facts can be relied on."""
    try:
        header = validation.parse_header(text)
        if header["version"] == VERSION:
            return {**header, "facts": validation.checked_metadata(header["facts"])}
    except ValueError as error:
        raise ValueError(_damaged(file, error)) from error
    raise ValueError(f"{file} has format version {header['version']!r:.40}, this pack reads {VERSION}; update the pack")


def _from_file(file: str, header: Mapping[str, Any], tensors: dict[str, Tensor]) -> AdapterStack:
    try:
        words = tuple(embedding_from_header(entry, tensors) for entry in header.get("words", ()))
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
    if not header["chain"] and not words:
        raise ValueError(f"{file} holds no adapter: its chain is empty")
    several = len(header["chain"]) > 1
    links = []
    for place, entry in enumerate(header["chain"]):
        links.append(_link(file, entry, tensors, f"{place + 1}/" if several else ""))
    if tensors:
        raise ValueError(f"{file} holds tensors its header does not name: {', '.join(sorted(tensors)[:4])}")
    try:
        return AdapterStack(tuple(links), header["facts"], words)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _link(file: str, entry: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str) -> Adapter:
    """The link that ``entry`` describes; its tensors are taken out of ``tensors``."""
    if entry["family"] not in FAMILIES:
        raise ValueError(f"{file} holds the family {entry['family']!r:.40}, this pack knows {', '.join(FAMILIES)}")
    family = entry["family"]
    try:
        if family in PACKED_CODECS:
            return _packed_link(family, tensors, prefix)
        return _named_link(family, entry, tensors, prefix)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error


def _packed_link(family: str, tensors: dict[str, Tensor], prefix: str) -> Adapter:
    link = unpack_adapter(tensors, prefix)
    if link.family != family:
        raise ValueError(f"holds {link.family} where its header says {family}; save it again")
    del tensors[prefix + PACKED], tensors[prefix + LAYOUT]
    return link


def _named_link(family: str, entry: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str) -> Adapter:
    codec, targets, layers = LAYER_CODECS[family], targets_from_header(entry["targets"]), {}
    for name, target in targets.items():
        expected = [f"{prefix}{name}.{key}" for key in codec.tensor_names]
        if missing := [key for key in expected if key not in tensors]:
            raise ValueError(f"lacks {', '.join(missing)}; the file is not whole")
        taken = zip(codec.tensor_names, expected, strict=True)
        values = {key: validation.checked_tensor(tensors.pop(full), full) for key, full in taken}
        try:
            layers[name] = _layer(codec, values, target.shape)
        except ValueError as error:
            raise ValueError(f"is of no use: the adapter of {name} {error}") from error
    return Adapter(family, layers, targets)


def _layer(codec: LayerCodec, values: Mapping[str, Tensor], shape: tuple[int, ...]) -> AdapterLayer:
    """The layer of ``values``, which have the very form that it would be saved in."""
    layer = codec.decode(values, shape)
    given = {key: tuple(value.shape) for key, value in values.items()}
    wanted = {key: tuple(value.shape) for key, value in codec.encode(layer, shape).items()}
    if given != wanted:
        raise ValueError(f"has tensors of the shapes {given}, not {wanted}")
    return layer
