"""One photograph as it comes from a phone or the web, read as it is meant to be seen.

Turned upright by its EXIF orientation; 16-bit, grey, palette and CMYK pictures as 8-bit RGB; transparency over white;
the first picture of an animation. A colour profile is left alone: the model was trained on pictures whose profiles
nobody looked at.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from ..engine.checks import check_choice, check_number

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MASK_SUFFIX = ".mask.png"
TEXT_SUFFIX = ".txt"
ON_BROKEN = ("skip", "stop")
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on damaged files."""
ORIENTATION = 0x0112


@dataclass(frozen=True)
class ReadOptions:
    """How a folder is read.

    Args:
        captions: take ``name.txt`` beside ``name.jpg`` as its text.
        masks: take ``name.mask.png``, or else the picture's own transparency, as its mask.
        on_broken: ``skip`` leaves damaged files out, ``stop`` raises.
        longest_side: larger pictures are scaled down to it while reading; 0 leaves them.
    """

    captions: bool = True
    masks: bool = True
    on_broken: str = "skip"
    longest_side: int = 2048

    def __post_init__(self) -> None:
        check_choice("on_broken", self.on_broken, ON_BROKEN)
        check_number("longest_side", self.longest_side, 0)


@dataclass(frozen=True)
class ImageRecord:
    """One picture ``[H, W, 3]`` in [0, 1], its text ("" without one), its mask ``[H, W]`` (None without one)."""

    name: str
    image: Tensor
    caption: str = ""
    mask: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def counting(self) -> Tensor:
        """The mask, or a white one: everything counts."""
        return torch.ones(self.image.shape[:2]) if self.mask is None else self.mask


def read_image(path: Path, reading: ReadOptions) -> ImageRecord:
    """The picture, with its text and mask where ``reading`` asks for them.

    Raises:
        one of ``BROKEN``: the picture, its mask or its text cannot be used; :func:`reason` says why.
    """
    picture, notes = _open(path)
    mask = _mask(path, picture) if reading.masks else None
    flat = _over_white(picture)
    longest = max(flat.size)
    if 0 < reading.longest_side < longest:
        notes.append(f"scaled down from {flat.width} x {flat.height}")
        size = tuple(max(1, round(side * reading.longest_side / longest)) for side in flat.size)
        flat = flat.resize(size, Image.Resampling.LANCZOS)
        mask = mask.resize(size, Image.Resampling.LANCZOS) if mask else None
    caption = _caption(path) if reading.captions else ""
    notes += ["its mask"] if mask else []
    return ImageRecord(path.name, _tensor(flat), caption, _tensor(mask) if mask else None, tuple(notes))


def _open(path: Path) -> tuple[Image.Image, list[str]]:
    """The first picture in the file, upright, 8 bits per channel."""
    notes: list[str] = []
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with _whole_files_only(), Image.open(path, formats=formats) as opened:
        if opened.format != "MPO" and _has_more(opened):
            notes.append("the first of several pictures in it")
        opened.load()
        if opened.getexif().get(ORIENTATION) in range(2, 9):
            notes.append("turned upright")
        return _eight_bit(ImageOps.exif_transpose(opened)), notes


def _has_more(picture: Image.Image) -> bool:
    try:
        picture.seek(1)
    except EOFError:
        return False
    picture.seek(0)
    return True


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """Pillow fills truncated pictures with grey once any program in the process has asked it to; here it must not."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits, by its range and not by its largest value. (16-bit colour Pillow has reduced itself.)"""
    if picture.mode == "F":
        raise ValueError("its values are floating-point numbers of no known range; save it as 8 or 16 bits")
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture, dtype=np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it has 32 bits per value; save it as 8 or 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _over_white(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white, where hidden colours would show otherwise."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _mask(path: Path, picture: Image.Image) -> Image.Image | None:
    """``name.mask.png``, white where it counts; or else how opaque the picture is, unless it is so everywhere."""
    beside = path.with_name(path.stem + MASK_SUFFIX)
    if not beside.is_file():
        alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
        return alpha if alpha and alpha.getextrema()[0] < 255 else None
    try:
        mask = _open(beside)[0].convert("L")
    except BROKEN as error:
        raise ValueError(f"its mask {beside.name}: {reason(error)}") from error
    if mask.size != picture.size:
        sizes = f"{mask.width} x {mask.height}, the picture {picture.width} x {picture.height}"
        raise ValueError(f"its mask {beside.name} is {sizes}; make them equal")
    return mask


def _caption(path: Path) -> str:
    """The text beside the picture in one line, or "" without one."""
    beside = path.with_suffix(TEXT_SUFFIX)
    if not beside.is_file():
        return ""
    try:
        return " ".join(beside.read_text("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"its text {beside.name} is not UTF-8; save it as UTF-8") from error


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


def reason(error: BaseException) -> str:
    """What is wrong with a file, in words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture, whatever its name says"
    if isinstance(error, OSError) and "truncated" in str(error):
        return "truncated: the end of the file is missing"
    if type(error) is ValueError and str(error):
        return str(error)
    return f"damaged ({str(error) or type(error).__name__})"
