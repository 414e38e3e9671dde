"""The source folder of a bank: one sub-folder per subject, named after it."""

from collections.abc import Sequence
from pathlib import Path

from ...models.subject_bank.manifest import Manifest
from ...models.subject_bank.shards import list_shards, read_shard
from ...models.validation import is_unicode
from ..data.image_folder import natural_order


def subject_names(source: Path) -> list[str]:
    """Return the names of the sub-folders of ``source`` in natural order.

    Raises:
        ValueError: there is none.
    """
    names = sorted(filter(_is_name, _folders(source)), key=natural_order)
    if not names:
        raise ValueError(
            f"folder {source.name!r} holds no sub-folder; make one for each subject, with its images inside"
        )
    return names


def unnamed_subjects(source: Path) -> list[str]:
    """Return a line for each sub-folder whose name no file header can hold."""
    return [f"{name!r:.60}: no name that a file can hold" for name in _folders(source) if not _is_name(name)]


def missing_subjects(names: Sequence[str], folder: Path, manifest: Manifest) -> list[str]:
    """Return the subjects that still have to be trained.

    Args:
        names: of all subjects of the source folder.
        folder: of the bank.
        manifest: of the bank; a shard of another one is refused.

    Raises:
        ValueError: a shard in ``folder`` is damaged or of another bank.
    """
    present = {entry.name for path in list_shards(folder) for entry in read_shard(path, manifest)}
    return [name for name in names if name not in present]


def in_batches(names: Sequence[str], size: int) -> list[list[str]]:
    """Return ``names`` in consecutive batches of at most ``size``."""
    return [list(names[start : start + size]) for start in range(0, len(names), size)]


def _folders(source: Path) -> list[str]:
    return [path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _is_name(name: str) -> bool:
    return is_unicode(name) and name.isprintable()
