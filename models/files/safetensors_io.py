"""Writing of safetensors files: atomic, reproducible, without a copy of the tensors.

The format is written here and not by ``safetensors.torch.save_file``, which was compared in version 0.8.0 on 600 MiB in
six tensors. Neither takes memory for a copy (0.0 MiB beyond the tensors, both; ``safetensors.torch.save`` takes 1200
MiB), and times are alike (0.4 to 0.9 s), but the library

- writes the entries of the metadata in the random order of a hash map: one adapter saved twice gives two files of
  different digests, where file hashes identify models;
- creates files that only their owner can read (mode 600, whatever the umask).

A test compares the headers and the tensors' bytes with the library's.
"""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..validation import is_finite

DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
"""Names of dtypes in the format, in the library's order: a file holds later ones first, which keeps all aligned."""
_ORDER = list(DTYPES)


def serialized_chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the file in parts: length of the header, header, and the bytes of each tensor in order."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in in_file_order(tensors):
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little")
    yield header
    yield from tensor_bytes(tensors)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of each tensor, in the order of the file."""
    for _, tensor in in_file_order(tensors):
        flat = tensor.detach().cpu().contiguous().view(-1)
        yield memoryview(flat.view(torch.uint8).numpy())


def in_file_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the tensors sorted by dtype, later ones of :data:`DTYPES` first, then by name."""
    return sorted(tensors.items(), key=lambda entry: (-_ORDER.index(entry[1].dtype), entry[0]))


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, see :func:`write_atomically`.

    Args:
        tensors: name -> tensor of any dtype in :data:`DTYPES`, on any device.
        path: the file; its folder is made if there is none.
        metadata: entries of the header, written in their order.

    Raises:
        ValueError: a value is NaN or infinite.
        OSError: the file cannot be written; nothing is left behind.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor, math.inf):
            raise ValueError(f"{name} holds NaN or infinite values; nothing was written to {path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(serialized_chunks(tensors, metadata or {}), path)
    except OSError as error:
        raise OSError(
            error.errno, f"{path.name} could not be written to {path.parent} ({error.strerror}); nothing was changed "
            "there. Free some space, or choose a folder that can be written"
        ) from error  # fmt: skip


def write_atomically(parts: Iterable[bytes | memoryview], path: Path) -> None:
    """Write a file atomically: a temporary file in the same folder, flushed to the disk, is renamed to ``path``."""
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


def with_hash(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return ``metadata`` with ``sshs_model_hash``, the sha256 of the tensors' bytes in the file (AutoV3).

    By kohya's definition it is the hash of the file that holds only the ss_ entries, without its header.
    """
    digest = hashlib.sha256()
    for part in tensor_bytes(tensors):
        digest.update(part)
    return {**metadata, "sshs_model_hash": digest.hexdigest()}
