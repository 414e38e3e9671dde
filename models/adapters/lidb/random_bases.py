"""Random orthonormal bases that are the same everywhere: LiDB's auxiliary matrices.

A file of LiDB weights means nothing without its bases, so they follow from a seed alone, on every device, operating
system and version of every library: the numbers are the words of SHAKE-128 of the basis' name, made normal by Box and
Muller's transform in float64, and orthonormal by the QR decomposition with a positive diagonal, which is unique.
"""

import hashlib
from collections.abc import Iterable
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

CHECKSUM_TOLERANCE = 1e-6
"""Of a probe: float32 leaves 6e-8 of such a number."""

MAX_BASIS_VALUES = 2**22
"""Numbers in a basis (16 MiB): a layer of 21,504, the widest of Flux, takes 195 columns."""
MAX_TOTAL_VALUES = 2**23
"""Numbers in the bases of one file. A file of a kilobyte can ask for any; the numbers themselves are not in it."""

_on_device: WeakValueDictionary[tuple[str, int, int, int, torch.device], Tensor] = WeakValueDictionary()


def random_basis(role: str, seed: int, size: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """``[size, columns]`` float32 with orthonormal columns, ``columns <= size``.

    All layers of one size share it, in memory as well.

    Args:
        role: which of a layer's bases, ``out`` or ``in``; they are independent.
    """
    check_basis_sizes([(size, columns)])
    device = torch.device(device)
    key = (role, seed, size, columns, device)
    kept = _on_device.get(key)
    if kept is None:
        with torch.inference_mode(False):
            kept = torch.from_numpy(_orthonormal(role, seed, size, columns)).to(device, copy=True)
        _on_device[key] = kept
    return kept


def check_basis_sizes(sizes: Iterable[tuple[int, int]]) -> None:
    """Bases ``[size, columns]`` exist and fit in memory.

    Raises:
        ValueError: they do not.
    """
    sizes = list(sizes)
    for size, columns in sizes:
        if columns > size or size * columns > MAX_BASIS_VALUES:
            raise ValueError(
                f"needs a basis of {size} x {columns}; a basis has no more columns than rows and at most {MAX_BASIS_VALUES} "
                "numbers, give a smaller a or b"
            )
    if (total := sum(size * columns for size, columns in sizes)) > MAX_TOTAL_VALUES:
        raise ValueError(f"needs bases of {total} numbers, at most {MAX_TOTAL_VALUES} are made; give a smaller a or b")


def checksum(role: str, seed: int, size: int, columns: int) -> list[float]:
    """The first, the middle and the last number of the basis, by which a file tells whether it means the same one: the
    last depends on all columns."""
    flat = random_basis(role, seed, size, columns).flatten()
    return [round(flat[place].item(), 7) for place in sorted({0, len(flat) // 2, len(flat) - 1})]


def _orthonormal(role: str, seed: int, size: int, columns: int) -> np.ndarray:
    name = f"hyperbooth lidb {role} seed {seed} size {size} columns {columns}"
    q, r = np.linalg.qr(_normal(name.encode(), size * columns).reshape(size, columns))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def _normal(name: bytes, count: int) -> np.ndarray:
    """``sqrt(-2 ln u) cos(2 pi v)`` and ``... sin(2 pi v)`` of pairs of words, u in (0, 1], v in [0, 1)."""
    pairs = -(-count // 2)
    words = np.frombuffer(hashlib.shake_128(name).digest(16 * pairs), dtype="<u8") >> np.uint64(11)
    u, v = (words[0::2] + 1.0) * 2.0**-53, words[1::2] * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * v
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:count]
