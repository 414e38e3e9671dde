"""Numbers of networks on disk: written whole, and missed in a sentence."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """The file is there whole or not at all."""
    temporary = path.with_suffix(".part")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
    os.replace(temporary, path)


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In half precision, whole numbers as they are."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A name for these numbers: what was made with others is not taken for theirs."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def there(path: Path) -> Path:
    """A file of the repository that a training writes.

    Raises:
        FileNotFoundError: it is not trained yet; the message says how.
    """
    if not path.exists():
        part = path.parent.name
        raise FileNotFoundError(
            f"the small world's networks are not all trained: {path.name} of {part!r} is missing; "
            f"`python -m tools.small_world.pretraining.pretrain FOLDER {part}` trains it"
        )
    return path


def read(path: Path) -> dict[str, Tensor]:
    """The numbers in a file that is :func:`there`."""
    return load_file(there(path))
