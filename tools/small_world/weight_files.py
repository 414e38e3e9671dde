"""Store network weights on disk: atomic writes, and a message for a missing file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the file atomically."""
    temporary = path.with_suffix(".part")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
    os.replace(temporary, path)


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in half precision, integers unchanged."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of the tensors' names and values, for cache keys."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def existing(path: Path) -> Path:
    """Return the path of a file that a training writes, if it exists.

    Raises:
        FileNotFoundError: it is not trained yet; the message tells how to train it.
    """
    if not path.exists():
        part = path.parent.name
        raise FileNotFoundError(
            f"the small world's networks are not all trained: {path.name} of {part!r} is missing; "
            f"`python -m tools.small_world.pretraining.pretrain FOLDER {part}` trains it"
        )
    return path


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an existing file, see :func:`existing`."""
    return load_file(existing(path))
