"""Reading a folder of images: usable files are read, all others are listed with the reason."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from .image_reader import (
    MASK_SUFFIX,
    READ_ERRORS,
    ImageRecord,
    ReadOptions,
    caption_path,
    mask_path,
    read_error,
    read_image,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
MIN_SIDE = 64
"""Pixels of the shorter side: a smaller image is a thumbnail or an icon, not a photo."""


def read_folder(folder: Path, options: ReadOptions) -> tuple[list[ImageRecord], list[str]]:
    """Read the usable images directly in ``folder``, in natural order.

    Returns:
        The images, and the lines of a report on all files.

    Raises:
        ValueError: no image can be used, or one is broken and ``on_broken`` is ``stop``.
    """
    used: list[ImageRecord] = []
    left_out: list[str] = []
    seen: dict[bytes, str] = {}
    for path in _image_files(folder):
        try:
            image = read_image(path, options)
        except READ_ERRORS as error:
            if options.on_broken == "stop":
                remedy = "repair it, remove it, or set on_broken to skip"
                raise ValueError(f"{path.name}: {read_error(error)}; {remedy}") from error
            left_out.append(f"{path.name}: {read_error(error)}")
            continue
        if unusable := _why_unusable(image, seen):
            left_out.append(f"{path.name}: {unusable}")
        else:
            used.append(image)
    if not used:
        raise ValueError("\n".join([f"no image in {folder.name} can be used", *left_out]))
    return used, _report(folder, used, left_out, options)


def folder_state(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and modification time (ns) of every file: equal as long as nothing has changed."""
    states = ((path.name, path.stat()) for path in files_in(folder))
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key with which dog 2 comes before dog 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", name)]


def files_in(folder: Path) -> list[Path]:
    """Return the visible files of a folder, in natural order."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(files, key=lambda path: natural_order(path.name))


def _image_files(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if _is_image_name(path.name)]


def _is_image_name(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not lower.endswith(MASK_SUFFIX)


def _why_unusable(image: ImageRecord, seen: dict[bytes, str]) -> str | None:
    """Return why a readable image is not used, or None.

    Args:
        image: as read.
        seen: digest -> name of the images so far; this one is added.
    """
    height, width = image.pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        return f"{width} x {height} pixels, too small: the shorter side needs {MIN_SIDE}"
    if image.mask is not None and not image.mask.any():
        return "its mask is black everywhere, so nothing would be learned from it"
    content = hashlib.sha256(f"{width} x {height}".encode() + image.pixels.numpy().tobytes()).digest()
    earlier = seen.setdefault(content, image.name)
    return None if earlier == image.name else f"a duplicate of {earlier}"


def _report(folder: Path, used: Sequence[ImageRecord], left_out: Sequence[str], options: ReadOptions) -> list[str]:
    lines = [f"{len(used)} images from {folder.name}", *map(_describe, used)]
    if missing := [image.name for image in used if options.captions and not image.caption]:
        which = "any of them" if len(missing) == len(used) else ", ".join(missing)
        lines.append(f"no text for {which}: the Subject's prompt is used")
    lines += [f"left out: {reason}" for reason in left_out]
    ignored = ", ".join(_other_files(folder))
    return lines + ([f"ignored: {ignored}"] if ignored else [])


def _describe(image: ImageRecord) -> str:
    height, width = image.pixels.shape[:2]
    return f"{image.name}: {', '.join([f'{width} x {height}', *image.notes])}"


def _other_files(folder: Path) -> list[str]:
    """Return the names of files that are neither images nor their texts or masks, and of folders."""
    images = _image_files(folder)
    known = {name for path in images for name in (path.name, caption_path(path).name, mask_path(path).name)}
    files = [path.name for path in files_in(folder) if path.name not in known]
    return files + [f"{path.name}/" for path in sorted(folder.iterdir()) if path.is_dir()]
