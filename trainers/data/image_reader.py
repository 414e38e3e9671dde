"""Reading one image file as it comes from a phone or the web, as it is meant to be seen.

The image is rotated upright by its EXIF orientation; 16-bit, gray, palette and CMYK images become 8-bit RGB;
transparency is composited over white; of an animation the first frame is read. A color profile is ignored: base models
were trained on images whose profiles were ignored, too.
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
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""Exceptions that Pillow raises on damaged files."""
ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Configure how a folder is read.

    Args:
        captions: read ``name.txt`` next to ``name.jpg`` as its caption.
        masks: read ``name.mask.png``, or else the image's own alpha channel, as its mask.
        on_broken: ``skip`` leaves damaged files out, ``stop`` raises.
        longest_side: larger images are downscaled to this many pixels while reading; 0 keeps their size.
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
    """One image as read.

    Args:
        name: of the file.
        pixels: ``[H, W, 3]`` in [0, 1].
        caption: its text, "" without one.
        mask: ``[H, W]`` in [0, 1], or None without one.
        notes: what was changed while reading, for the report.
    """

    name: str
    pixels: Tensor
    caption: str = ""
    mask: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def mask_or_ones(self) -> Tensor:
        """The mask ``[H, W]``; without one it is white everywhere."""
        return torch.ones(self.pixels.shape[:2]) if self.mask is None else self.mask


def read_image(path: Path, options: ReadOptions) -> ImageRecord:
    """Read an image, with its caption and mask if ``options`` ask for them.

    Raises:
        Exception: one of ``READ_ERRORS``: the image, its mask or its caption cannot be used; :func:`read_error`
            gives the reason in words.
    """
    image, notes = _open(path)
    mask = _mask(path, image) if options.masks else None
    rgb = _over_white(image)
    if 0 < options.longest_side < max(rgb.size):
        notes.append(f"downscaled from {rgb.width} x {rgb.height}")
        size = tuple(max(1, round(side * options.longest_side / max(rgb.size))) for side in rgb.size)
        rgb = rgb.resize(size, Image.Resampling.LANCZOS)
        mask = mask.resize(size, Image.Resampling.LANCZOS) if mask else None
    caption = _caption(path) if options.captions else ""
    notes += ["with mask"] if mask else []
    return ImageRecord(path.name, _tensor(rgb), caption, _tensor(mask) if mask else None, tuple(notes))


def mask_path(path: Path) -> Path:
    """Return the path of an image's mask."""
    return path.with_name(path.stem + MASK_SUFFIX)


def caption_path(path: Path) -> Path:
    """Return the path of an image's caption."""
    return path.with_suffix(TEXT_SUFFIX)


def _open(path: Path) -> tuple[Image.Image, list[str]]:
    """Return the first frame of the file, upright, with 8 bits per channel, and notes for the report."""
    notes: list[str] = []
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with _no_truncated_files(), Image.open(path, formats=formats) as opened:
        if opened.format != "MPO" and _is_animated(opened):
            notes.append("first frame of several")
        opened.load()
        if opened.getexif().get(ORIENTATION) in range(2, 9):
            notes.append("rotated upright")
        return _eight_bit(ImageOps.exif_transpose(opened)), notes


def _is_animated(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True


@contextmanager
def _no_truncated_files() -> Iterator[None]:
    """Make Pillow reject truncated images inside the block, even if another extension lets it pad them with gray."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray to 8 bits by its range, not by its largest value; Pillow itself reduces 16-bit color."""
    if image.mode == "F":
        raise ValueError("it holds floating-point values of unknown range; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image, dtype=np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it has 32 bits per value; save it with 8 or 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    """Composite over white and convert to RGB; otherwise colors hidden by transparency would show."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _mask(path: Path, image: Image.Image) -> Image.Image | None:
    """Return the mask in ``name.mask.png``, or else the alpha channel unless it is opaque everywhere."""
    file = mask_path(path)
    if not file.is_file():
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        return alpha if alpha and alpha.getextrema()[0] < 255 else None
    try:
        mask = _open(file)[0].convert("L")
    except READ_ERRORS as error:
        raise ValueError(f"its mask {file.name}: {read_error(error)}") from error
    if mask.size != image.size:
        sizes = f"{mask.width} x {mask.height}, the image {image.width} x {image.height}"
        raise ValueError(f"its mask {file.name} is {sizes}; make them equal")
    return mask


def _caption(path: Path) -> str:
    """Return the text in ``name.txt`` as one line, or "" without the file."""
    file = caption_path(path)
    if not file.is_file():
        return ""
    try:
        return " ".join(file.read_text("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"its text {file.name} is not UTF-8; save it as UTF-8") from error


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def read_error(error: BaseException) -> str:
    """Return in words why a file cannot be read."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in any known format"
    if isinstance(error, OSError) and "truncated" in str(error):
        return "truncated: the end of the file is missing"
    if type(error) is ValueError and str(error):
        return str(error)
    return f"damaged ({str(error) or type(error).__name__})"
