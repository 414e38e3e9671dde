"""Digest of a file's header and tensors, so that a file of this pack that was damaged or changed is noticed.

A flipped bit of a tensor is a value like any other: no check of shapes and finiteness sees it. Every file that the pack
writes for itself therefore carries a digest in its header, a SHA-256 of the header's own entry and of each tensor's
name, dtype, shape and CRC-32. It guards against damage, not against somebody who writes a digest of his own: whatever
is read is validated all the same. CRC-32 (3.3 GB/s here, SHA-256 0.6) keeps it below the time of writing the file.
"""

import hashlib
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

DIGEST = "hyperbooth_digest"
"""The entry of the safetensors metadata that holds the digest."""


def file_digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of a header's text and of tensors, in hexadecimal."""
    digest = hashlib.sha256(header.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}{tuple(tensor.shape)}{checksum(tensor)}".encode())
    return digest.hexdigest()


def check_digest(metadata: Mapping[str, str], header: str, tensors: Mapping[str, Tensor]) -> None:
    """Require that header and tensors are those that the digest in ``metadata`` was made of.

    Args:
        metadata: of the file, with the digest.
        header: text of the file's own header entry.
        tensors: all tensors that the digest is of.

    Raises:
        ValueError: there is no digest, or it is another.
    """
    if metadata.get(DIGEST) != file_digest(header, tensors):
        raise ValueError("was damaged or changed after it was written: its digest is that of other values")


def checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return zlib.crc32(memoryview(flat.view(torch.uint8).numpy())) if flat.numel() else 0


def row_checksums(tensor: Tensor) -> list[int]:
    """Return the CRC-32 of each row, for tensors ``[n, ...]`` of which single rows are read."""
    return [checksum(row) for row in tensor]
