"""Reading a folder of images: usable files are read, all others are listed with the reason."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd
from pathlib import Path

from .companions import Companions, caption_path, find_companions
from .image_reader import READ_ERRORS, ImageRecord, ReadOptions, read_error, read_image

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".avif",
    ".heic",
    ".heif",
)
MIN_SIDE = 64
"""Pixels of the shorter side: a smaller image is a thumbnail or an icon, not a photo."""
MAX_REPEATS = 1000
_REPEATS = re.compile(r"(?P<repeats>[0-9]{1,6})_(?P<name>.+)")


@dataclass
class _Reading:
    """One folder being read.

    Args:
        folder: the folder.
        options: what is read.
        used: the images so far.
        left_out: lines on the files that are not used.
    """

    folder: Path
    options: ReadOptions
    used: list[ImageRecord] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @cached_property
    def files(self) -> list[Path]:
        """The image files, in natural order."""
        return [path for path in files_in(self.folder) if path.suffix.lower() in SUFFIXES]

    @cached_property
    def companions(self) -> Companions:
        """The masks and other files that belong to images."""
        return find_companions(self.files)

    def read(self, seen: dict[bytes, str], caption: str = "") -> None:
        """Read the usable images.

        Args:
            seen: digest -> name of the images so far, of all folders.
            caption: of images that have none of their own.
        """
        masks = {mask: image for image, mask in self.companions.masks.items()}
        for path in self.files:
            if path in self.companions.others:
                image, role = self.companions.others[path]
                self.left_out.append(f"{path.name}: by its name the {role} of {image.name}")
            elif path not in masks:
                self._read_one(path, seen, caption)
            elif not self.options.masks:
                self.left_out.append(f"{path.name}: by its name the mask of {masks[path].name}, and masks is off")

    def _read_one(self, path: Path, seen: dict[bytes, str], caption: str) -> None:
        try:
            image = read_image(path, self.options, self.companions.masks.get(path))
        except READ_ERRORS as error:
            if self.options.on_broken == "stop":
                remedy = "repair it, remove it, or set on_broken to skip"
                raise ValueError(f"{path.name}: {read_error(error, path)}; {remedy}") from error
            self.left_out.append(f"{path.name}: {read_error(error, path)}")
            return
        if unusable := _why_unusable(image, seen):
            self.left_out.append(f"{path.name}: {unusable}")
        else:
            self.used.append(image if image.caption else replace(image, caption=caption))


def read_folder(folder: Path, options: ReadOptions) -> tuple[list[ImageRecord], list[str]]:
    """Read the usable images directly in ``folder``, in natural order.

    A folder without images whose sub-folders have names such as ``10_sks dog``, as kohya's scripts take them, is read
    with these: images without a caption have the name's text as theirs, and are given as often, relative to the other
    sub-folders, as the number says.

    Returns:
        The images, and the lines of a report on all files.

    Raises:
        ValueError: no image can be used, or one is broken and ``on_broken`` is ``stop``.
    """
    if repeated := _repeat_folders(folder):
        return _read_repeated(folder, repeated, options)
    reading = _Reading(folder, options)
    reading.read({})
    ignored = _other_files(reading)
    if not reading.used:
        unread = [f"{name}: not an image in any known format" for name in ignored]
        raise ValueError("\n".join([f"no image in {folder.name} can be used", *reading.left_out, *unread]))
    return reading.used, _report(folder.name, reading, ignored)


def _read_repeated(
    folder: Path, sub_folders: dict[Path, tuple[int, str]], options: ReadOptions
) -> tuple[list[ImageRecord], list[str]]:
    """Read the sub-folders of kohya's naming.

    Args:
        folder: that holds them.
        sub_folders: sub-folder -> repeats, and the caption of its images.
        options: what is read.
    """
    common = gcd(*(repeats for repeats, _ in sub_folders.values()))
    found: list[ImageRecord] = []
    lines: list[str] = []
    left_out: list[str] = []
    seen: dict[bytes, str] = {}
    for sub_folder, (repeats, caption) in sub_folders.items():
        reading = _Reading(sub_folder, options)
        reading.read(seen, caption if options.captions else "")
        times = min(repeats // common, MAX_REPEATS)
        found += reading.used * times
        left_out += [f"{sub_folder.name}/{reason}" for reason in reading.left_out]
        if reading.used:
            lines += _report(sub_folder.name, reading, _other_files(reading))
            lines.append(f"{sub_folder.name}: each image {times} times, by the number in the folder's name")
    if not found:
        raise ValueError("\n".join([f"no image in {folder.name} can be used", *left_out]))
    return found, lines


def _repeat_folders(folder: Path) -> dict[Path, tuple[int, str]]:
    """Return the sub-folders named ``<repeats>_<text>`` with both, if the folder has no image of its own."""
    if any(path.suffix.lower() in SUFFIXES for path in files_in(folder)):
        return {}
    found = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural_order(path.name)):
        match = _REPEATS.fullmatch(path.name)
        if match and path.is_dir() and int(match["repeats"]) > 0:
            found[path] = int(match["repeats"]), match["name"].replace("_", " ").strip()
    return found


def folder_state(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and modification time (ns) of every file: equal as long as nothing has changed."""
    files = [*files_in(folder), *(path for sub_folder in _repeat_folders(folder) for path in files_in(sub_folder))]
    states = ((path.relative_to(folder).as_posix(), path.stat()) for path in files)
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key with which dog 2 comes before dog 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", name)]


def files_in(folder: Path) -> list[Path]:
    """Return the visible files of a folder, in natural order."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(files, key=lambda path: natural_order(path.name))


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


def _report(name: str, reading: _Reading, ignored: Sequence[str]) -> list[str]:
    used = reading.used
    lines = [f"{len(used)} images from {name}", *map(_describe, used)]
    if missing := [image.name for image in used if reading.options.captions and not image.caption]:
        which = "any of them" if len(missing) == len(used) else ", ".join(missing)
        lines.append(f"no text for {which}: the Subject's prompt is used")
    lines += [f"left out: {reason}" for reason in reading.left_out]
    return lines + ([f"ignored: {', '.join(ignored)}"] if ignored else [])


def _describe(image: ImageRecord) -> str:
    height, width = image.pixels.shape[:2]
    return f"{image.name}: {', '.join([f'{width} x {height}', *image.notes])}"


def _other_files(reading: _Reading) -> list[str]:
    """Return the names of files that are neither images nor their texts or masks, and of folders."""
    known = {*reading.files, *map(caption_path, reading.files)}
    files = [path.name for path in files_in(reading.folder) if path not in known]
    return files + [f"{path.name}/" for path in sorted(reading.folder.iterdir()) if path.is_dir()]
