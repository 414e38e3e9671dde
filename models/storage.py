"""Adapter files: safetensors, self-describing, written atomically.

Tensors are named ``<layer>.<tensor of the family>``, where the layer's name is ComfyUI's own, so that a file
holding one LoRA is at once a LoRA that ComfyUI's stock loaders read. A chain of several links prefixes each
with its place, ``1/``, ``2/``, so that no other tool mistakes a part for the whole. The header's
``hyperbooth`` entry (JSON) holds the format version, the chain in order, and the facts. A file without it is read
as a plain LoRA of another program, see :mod:`.foreign`.
"""

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .adapter_set import AdapterSet, Link
from .adapters import FAMILIES
from .dialects import link_tensors
from .foreign import Names, check_is_lora, read_lora
from .stream import chunks
from .targets import Target

VERSION = 1
SUFFIXES = (".safetensors", ".sft")
HEADER = "hyperbooth"


def save_adapter(
    adapter: AdapterSet, path: Path, dtype: torch.dtype = torch.float32, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``adapter`` to ``path``.

    Raises:
        ValueError: a value is not finite (a broken run must not reach a file).
        OSError: the disk is full or the folder cannot be written; the former file, if any, is untouched.
    """
    tensors = in_file(adapter_tensors(adapter), dtype)
    write_tensors(tensors, path, {**(metadata or {}), HEADER: header_of(adapter)})


def load_adapter(path: Path, names: Names | None = None) -> AdapterSet:
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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                check_is_lora(path.name, file.keys())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or no safetensors file ({error}); save it again") from error
    if HEADER not in metadata:
        return read_lora(path.name, tensors, metadata, names or Names())
    try:
        return _from_file(path.name, json.loads(metadata[HEADER]), tensors)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} has a damaged {HEADER!r} header ({error!r}); save it again") from error


def adapter_tensors(adapter: AdapterSet) -> dict[str, Tensor]:
    """The tensors of every link, as our own format names them."""
    return {
        _prefix(adapter, i) + name: tensor
        for i, link in enumerate(adapter.chain)
        for name, tensor in link_tensors(link).items()
    }


def header_of(adapter: AdapterSet) -> str:
    """The entry under :data:`HEADER` that makes a file ours."""
    chain = [
        {
            "family": link.family,
            "facts": FAMILIES[link.family].link_facts(link.adapters.values()),
            "targets": {name: list(target.shape) for name, target in link.targets.items()},
        }
        for link in adapter.chain
    ]
    return json.dumps({"version": VERSION, "chain": chain, "facts": dict(adapter.facts)})


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically: a temporary file beside it, then a rename.

    Raises:
        ValueError: a value is NaN or infinite.
        OSError: the file cannot be written; nothing is left behind.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values; nothing was written to {path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(chunks(tensors, metadata or {}), path)
    except OSError as error:
        raise OSError(
            error.errno, f"{path.name} could not be written to {path.parent} ({error.strerror}); nothing was changed "
            "there. Free some space, or choose a folder that can be written"
        ) from error  # fmt: skip


def _write_whole(parts: Iterable[bytes | memoryview], path: Path) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def in_file(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors as a file takes them; single numbers (an alpha) stay exact whatever the precision."""
    return {name: (tensor.to(dtype) if tensor.ndim else tensor).contiguous().cpu() for name, tensor in tensors.items()}


def _prefix(adapter: AdapterSet, place: int) -> str:
    return f"{place + 1}/" if len(adapter.chain) > 1 else ""


def _from_file(file: str, header: Mapping[str, Any], tensors: dict[str, Tensor]) -> AdapterSet:
    if header["version"] != VERSION:
        raise ValueError(f"{file} has format version {header['version']}, this pack reads {VERSION}; update the pack")
    if not header["chain"]:
        raise ValueError(f"{file} holds no adapter: its chain is empty")
    several = len(header["chain"]) > 1
    links = []
    for place, entry in enumerate(header["chain"]):
        links.append(_link(file, entry, tensors, f"{place + 1}/" if several else ""))
    if tensors:
        raise ValueError(f"{file} holds tensors its header does not name: {', '.join(sorted(tensors)[:4])}")
    return AdapterSet(tuple(links), header["facts"])


def _own(file: str, name: str, tensor: Tensor) -> Tensor:
    """In float32 and memory of its own: the file may be written over while the adapter is in use."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{file}: {name} holds NaN or infinite values; the file is of no use")
    return tensor.to(torch.float32, copy=True)


def _link(file: str, entry: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str) -> Link:
    if entry["family"] not in FAMILIES:
        raise ValueError(f"{file} holds the family {entry['family']!r}, this pack knows {', '.join(FAMILIES)}")
    kind = FAMILIES[entry["family"]]
    targets = {name: Target(name, tuple(shape)) for name, shape in entry["targets"].items()}
    facts = entry.get("facts", {})
    try:
        kind.check_facts(facts)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
    adapters = {}
    for name, target in targets.items():
        expected = [f"{prefix}{name}.{key}" for key in kind.tensor_names]
        if missing := [key for key in expected if key not in tensors]:
            raise ValueError(f"{file} lacks {', '.join(missing)}; the file is not whole")
        taken = zip(kind.tensor_names, expected, strict=True)
        values = {key: _own(file, full, tensors.pop(full)) for key, full in taken}
        try:
            adapters[name] = kind.from_file(values, target.shape, facts)
        except ValueError as error:
            raise ValueError(f"{file}: the adapter of {name} {error}") from error
    return Link(entry["family"], adapters, targets)
