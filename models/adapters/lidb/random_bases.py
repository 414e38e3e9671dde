"""Random orthonormal bases that are the same on every machine: LiDB's auxiliary matrices.

LiDB weights have no meaning without their bases. The bases therefore follow from a seed alone, on every device,
operating system and version of every library: SHAKE-128 of the basis' name gives the random words, Box and Muller's
transform in float64 makes them normal, and the QR decomposition with a positive diagonal, which is unique, makes the
columns orthonormal.
"""

import hashlib
from collections.abc import Iterable
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

CHECKSUM_TOLERANCE = 1e-6
"""Largest difference of two checksums of the same basis: float32 rounds such a value to 6e-8."""

MAX_BASIS_VALUES = 2**22
"""Values in a basis (16 MiB): a layer of 21,504, the widest of Flux, allows 195 columns."""
MAX_TOTAL_VALUES = 2**23
"""Values in the bases of one file, which does not hold them: a file of a kilobyte can ask for any number."""

_on_device: WeakValueDictionary[tuple[str, int, int, int, torch.device], Tensor] = WeakValueDictionary()


def random_basis(role: str, seed: int, size: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the basis ``[size, columns]``, float32 with orthonormal columns.

    All layers of one size share one tensor as long as any of them is alive.

    Args:
        role: which of a layer's bases, ``out`` or ``in``; the two are independent.
        seed: from 0 to 2^64 - 1.
        size: the number of rows, a layer's ``out`` or ``in``.
        columns: the number of columns, at most ``size``.
        device: of the returned tensor; the values do not depend on it.

    Raises:
        ValueError: the basis does not exist or is too large, see :func:`check_basis_sizes`.
    """
    check_basis_sizes([(size, columns)])
    device = torch.device(device)
    key = (role, seed, size, columns, device)
    basis = _on_device.get(key)
    if basis is None:
        with torch.inference_mode(False):
            basis = torch.from_numpy(_orthonormal(role, seed, size, columns)).to(device, copy=True)
        _on_device[key] = basis
    return basis


def check_basis_sizes(sizes: Iterable[tuple[int, int]]) -> None:
    """Check that bases ``[size, columns]`` exist and fit in memory.

    Raises:
        ValueError: a basis has more columns than rows, or more than :data:`MAX_BASIS_VALUES` values, or all of them
            together more than :data:`MAX_TOTAL_VALUES`.
    """
    sizes = list(sizes)
    for size, columns in sizes:
        if columns > size or size * columns > MAX_BASIS_VALUES:
            raise ValueError(
                f"needs a basis of {size} x {columns}; a basis has no more columns than rows and at most "
                f"{MAX_BASIS_VALUES} values, give a smaller a or b"
            )
    if (total := sum(size * columns for size, columns in sizes)) > MAX_TOTAL_VALUES:
        raise ValueError(f"needs bases of {total} values, at most {MAX_TOTAL_VALUES} are made; give a smaller a or b")


def basis_checksum(role: str, seed: int, size: int, columns: int) -> list[float]:
    """Return the first, the middle and the last value of a basis, by which a file identifies it.

    The last value depends on all columns.

    Args:
        role: ``out`` or ``in``.
        seed: of the basis.
        size: the number of rows.
        columns: the number of columns.
    """
    flat = random_basis(role, seed, size, columns).flatten()
    return [round(flat[index].item(), 7) for index in sorted({0, len(flat) // 2, len(flat) - 1})]


def _orthonormal(role: str, seed: int, size: int, columns: int) -> np.ndarray:
    name = f"hyperbooth lidb {role} seed {seed} size {size} columns {columns}"
    q, r = np.linalg.qr(_normal(name.encode(), size * columns).reshape(size, columns))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def _normal(name: bytes, count: int) -> np.ndarray:
    """Return ``sqrt(-2 ln u) cos(2 pi v)`` and ``... sin(2 pi v)`` of pairs of words, u in (0, 1], v in [0, 1)."""
    pairs = -(-count // 2)
    words = np.frombuffer(hashlib.shake_128(name).digest(16 * pairs), dtype="<u8") >> np.uint64(11)
    u, v = (words[0::2] + 1.0) * 2.0**-53, words[1::2] * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * v
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:count]
