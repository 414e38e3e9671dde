"""Adapter files: safetensors, self-describing, written atomically.

Tensors are named ``<layer>.<tensor of the family>``, where the layer's name is ComfyUI's own, so that a file
holding one LoRA is at once a LoRA that ComfyUI's stock loaders read. A chain of several links prefixes each
with its place, ``1/``, ``2/``, so that no other tool mistakes a part for the whole. The header's
``hyperbooth`` entry (JSON) holds the format version, the chain in order, and the facts.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .adapter_set import AdapterSet, Link
from .adapters import FAMILIES, LoRA
from .targets import Target

VERSION = 1
HEADER = "hyperbooth"


def save_adapter(
    adapter: AdapterSet, path: Path, dtype: torch.dtype = torch.float32, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``adapter`` to ``path``.

    Raises:
        ValueError: a value is not finite (a broken run must not reach a file).
        OSError: the disk is full or the folder cannot be written; the former file, if any, is untouched.
    """
    tensors = {
        _prefix(adapter, i) + name: tensor.to(dtype).contiguous().cpu()
        for i, link in enumerate(adapter.chain)
        for name, tensor in link_tensors(link).items()
    }
    write_tensors(tensors, path, {**(metadata or {}), HEADER: json.dumps(_header(adapter))})


def load_adapter(path: Path) -> AdapterSet:
    """Read a file that :func:`save_adapter` wrote; parameters are float32 on the CPU.

    Raises:
        ValueError: not such a file, of an unknown version or family, or with tensors missing, foreign or of
            another shape; the message lists both sides.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if header else {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or no safetensors file ({error}); save it again") from error
    if header is None:
        raise ValueError(
            f"{path.name} was not saved by HyperBooth (its header has no {HEADER!r} entry); "
            "a LoRA of another trainer opens in the stock Load LoRA node"
        )
    try:
        return _from_file(path.name, json.loads(header), tensors)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} has a damaged {HEADER!r} header ({error!r}); save it again") from error


def link_tensors(link: Link) -> dict[str, Tensor]:
    """``<layer>.<tensor>`` -> tensor, with a convolution's factors in the four dimensions other tools expect."""
    return {
        f"{name}.{key}": _to_file_shape(key, tensor, link.targets[name])
        for name, adapter in link.adapters.items()
        for key, tensor in adapter.to_tensors().items()
    }


def lora_tensors(adapter: AdapterSet) -> dict[str, Tensor]:
    """The chain as one plain LoRA of scale 1, in ComfyUI's names: what its stock nodes take."""
    plain = {name: LoRA(up, down, alpha=len(down)) for name, (up, down) in adapter.as_lora().items()}
    return link_tensors(Link(LoRA.family, plain, adapter.targets()))


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically: a temporary file beside it, then a rename.

    Raises:
        ValueError: a value is NaN or infinite.
        OSError: the file cannot be written; nothing is left behind.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values; nothing was written to {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(save(dict(tensors), metadata=dict(metadata or {})))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _prefix(adapter: AdapterSet, place: int) -> str:
    return f"{place + 1}/" if len(adapter.chain) > 1 else ""


def _header(adapter: AdapterSet) -> dict[str, Any]:
    chain = [
        {"family": link.family, "targets": {name: list(target.shape) for name, target in link.targets.items()}}
        for link in adapter.chain
    ]
    return {"version": VERSION, "chain": chain, "facts": dict(adapter.facts)}


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


def _link(file: str, entry: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str) -> Link:
    if entry["family"] not in FAMILIES:
        raise ValueError(f"{file} holds the family {entry['family']!r}, this pack knows {', '.join(FAMILIES)}")
    kind = FAMILIES[entry["family"]]
    targets = {name: Target(name, tuple(shape)) for name, shape in entry["targets"].items()}
    adapters = {}
    for name, target in targets.items():
        expected = [f"{prefix}{name}.{key}" for key in kind.tensor_names]
        if missing := [key for key in expected if key not in tensors]:
            raise ValueError(f"{file} lacks {', '.join(missing)}; the file is not whole")
        values = {
            key: _from_file_shape(tensors.pop(full)) for key, full in zip(kind.tensor_names, expected, strict=True)
        }
        adapters[name] = kind.from_tensors(values)
        _check_shape(file, target, adapters[name])
    return Link(entry["family"], adapters, targets)


def _check_shape(file: str, target: Target, adapter: Any) -> None:
    if adapter.matrix != target.matrix:
        raise ValueError(
            f"{file}: the adapter of {target.name} is for a matrix of {adapter.matrix[0]} x {adapter.matrix[1]}, "
            f"its header says {target.matrix[0]} x {target.matrix[1]}"
        )


def _to_file_shape(key: str, tensor: Tensor, target: Target) -> Tensor:
    if len(target.shape) != 4 or tensor.ndim != 2:
        return tensor
    return tensor.unflatten(1, target.shape[1:]) if "up" not in key else tensor[:, :, None, None]


def _from_file_shape(tensor: Tensor) -> Tensor:
    return tensor.float().flatten(1) if tensor.ndim > 1 else tensor.float()
