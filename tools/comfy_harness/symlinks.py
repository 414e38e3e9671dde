"""Give files and folders a second name, also where the system allows no symbolic links. Standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def link(source: Path, name: Path) -> None:
    """Make ``name`` a link to the file or folder ``source``, unless ``name`` exists.

    Windows may allow only a junction (of a folder) or a hard link (of a file), or only a copy.
    """
    source = source.resolve()
    if name.exists():
        return
    try:
        name.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        (_folder if source.is_dir() else _file)(source, name)


def _folder(source: Path, name: Path) -> None:
    junction = ["cmd", "/c", "mklink", "/J", str(name), str(source)]
    if os.name != "nt" or subprocess.run(junction, capture_output=True).returncode:
        shutil.copytree(source, name, ignore=shutil.ignore_patterns(".git", "__pycache__"))


def _file(source: Path, name: Path) -> None:
    try:
        os.link(source, name)
    except OSError:
        shutil.copyfile(source, name)


def unlink(name: Path) -> None:
    """Remove what :func:`link` made, but not its target."""
    if name.is_symlink() or name.is_file():
        name.unlink()
    elif name.exists():
        try:
            name.rmdir()  # a junction: removes the link, not its target
        except OSError:
            shutil.rmtree(name)  # a copy
