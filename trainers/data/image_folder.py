"""A folder of photographs: what can be used is read, the rest is named."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from .image_reader import BROKEN, MASK_SUFFIX, TEXT_SUFFIX, ImageRecord, ReadOptions, read_image, reason

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
SMALLEST = 64
"""Pixels of the shorter side: below, it is a thumbnail or an icon, not a photograph."""


def read_folder(folder: Path, reading: ReadOptions) -> tuple[list[ImageRecord], list[str]]:
    """The usable photographs directly in ``folder``, in natural order, and what to say of all files.

    Raises:
        ValueError: none can be used, or one is broken and ``on_broken`` is ``stop``.
    """
    used: list[ImageRecord] = []
    left_out: list[str] = []
    seen: dict[bytes, str] = {}
    for path in _candidates(folder):
        try:
            photograph = read_image(path, reading)
        except BROKEN as error:
            if reading.on_broken == "stop":
                hint = "repair it, take it away, or set on_broken to skip"
                raise ValueError(f"{path.name}: {reason(error)}; {hint}") from error
            left_out.append(f"{path.name}: {reason(error)}")
            continue
        if unwanted := _unwanted(photograph, seen):
            left_out.append(f"{path.name}: {unwanted}")
        else:
            used.append(photograph)
    if not used:
        raise ValueError("\n".join([f"no photograph in {folder.name} can be used", *left_out]))
    return used, _report(folder, used, left_out, reading)


def state_of(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file: another state means that something changed."""
    states = ((path.name, path.stat()) for path in files_in(folder))
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key: dog 2 comes before dog 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", name)]


def files_in(folder: Path) -> list[Path]:
    """The visible files of a folder, in natural order."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(files, key=lambda path: natural_order(path.name))


def _candidates(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if _is_picture_name(path.name)]


def _is_picture_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.lower().endswith(MASK_SUFFIX)


def _unwanted(photograph: ImageRecord, seen: dict[bytes, str]) -> str | None:
    """Why a readable picture is not used, or None; remembers its content in ``seen``."""
    height, width = photograph.image.shape[:2]
    if min(height, width) < SMALLEST:
        return f"{width} x {height} pixels, too small: {SMALLEST} is the least"
    if photograph.mask is not None and not photograph.mask.any():
        return "its mask is black everywhere, so it would teach nothing"
    content = hashlib.sha256(f"{width} x {height}".encode() + photograph.image.numpy().tobytes()).digest()
    earlier = seen.setdefault(content, photograph.name)
    return None if earlier == photograph.name else f"the same picture as {earlier}"


def _report(folder: Path, used: Sequence[ImageRecord], left_out: Sequence[str], reading: ReadOptions) -> list[str]:
    lines = [f"{len(used)} photographs from {folder.name}", *(_line(photograph) for photograph in used)]
    if missing := [photograph.name for photograph in used if reading.captions and not photograph.caption]:
        which = "any of them" if len(missing) == len(used) else ", ".join(missing)
        lines.append(f"no text for {which}: the Subject's prompt is taken")
    lines += [f"left out: {why}" for why in left_out]
    others = ", ".join(_others(folder))
    return lines + ([f"not looked at: {others}"] if others else [])


def _line(photograph: ImageRecord) -> str:
    height, width = photograph.image.shape[:2]
    return f"{photograph.name}: {', '.join([f'{width} x {height}', *photograph.notes])}"


def _others(folder: Path) -> list[str]:
    """Files that are no pictures, nor a picture's text or mask; and folders."""
    pictures = _candidates(folder)
    known = {path.with_suffix(TEXT_SUFFIX).name for path in pictures} | {path.stem + MASK_SUFFIX for path in pictures}
    names = {path.name for path in pictures} | known
    files = [path.name for path in files_in(folder) if path.name not in names]
    return files + [f"{path.name}/" for path in sorted(folder.iterdir()) if path.is_dir()]
