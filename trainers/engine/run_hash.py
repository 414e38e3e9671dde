"""Hash of everything a run depends on, so that a saved state is used by the run it came from and no other."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

WINDOWS, WIDTH = 4, 64
"""Number and length of the samples of each tensor of a base model: enough to tell any two models apart, in a few pages
of a file that may not be in memory yet."""


def run_hash(*values: Any) -> str:
    """Return a hexadecimal digest of plain values, dataclasses, containers and tensors (every bit of them).

    Of objects of other types only the class name is hashed.
    """
    digest = hashlib.sha256()
    for value in values:
        _add(digest, value)
    return digest.hexdigest()[:32]


def sample_values(tensor: Tensor) -> Tensor:
    """Return :data:`WINDOWS` runs of :data:`WIDTH` values spread over ``tensor``, both of its ends included."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() <= WINDOWS * WIDTH:
        return flat
    starts = [(flat.numel() - WIDTH) * i // (WINDOWS - 1) for i in range(WINDOWS)]
    return torch.cat([flat[start : start + WIDTH] for start in starts])


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        _add_tensor(digest, value)
    elif is_dataclass(value) and not isinstance(value, type):
        _add(digest, {field.name: getattr(value, field.name) for field in fields(value)})
    elif isinstance(value, Mapping):
        digest.update(b"{")
        for key in sorted(value, key=str):
            _add(digest, str(key))
            _add(digest, value[key])
        digest.update(b"}")
    elif isinstance(value, (list, tuple)):
        digest.update(b"[")
        for item in value:
            _add(digest, item)
        digest.update(b"]")
    elif isinstance(value, nn.Module):
        _add(digest, dict(value.state_dict()))
    else:
        plain = value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype))
        digest.update(f"{type(value).__qualname__}:{repr(value) if plain else ''};".encode())


def _add_tensor(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
