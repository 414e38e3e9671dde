"""Reading one image file as it comes from a phone or the web, as it is meant to be seen.

The image is rotated upright by its EXIF orientation; 16-bit, gray, palette and CMYK images become 8-bit RGB;
transparency is composited over white; of an animation the first frame is read. A color profile is ignored: base models
were trained on images whose profiles were ignored, too.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...models.validation import MAX_PROMPT_LENGTH
from ..checks import check_choice, check_number
from .companions import caption_path
from .pixel_budget import OpenedImage

ON_BROKEN = ("skip", "stop")
READ_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, Image.DecompressionBombError
)  # fmt: skip
"""Exceptions that Pillow raises on damaged files."""
CAPTION_ENCODINGS = ("utf-8-sig", "cp1252")
ROWS = 256
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Configure how a folder is read.

    Args:
        captions: read ``name.txt`` next to ``name.jpg`` as its caption.
        masks: read ``name.mask.png`` (or what other tools call a mask, see :mod:`.companions`), or else the image's
            own alpha channel, as its mask.
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


def read_image(path: Path, options: ReadOptions, mask_file: Path | None = None) -> ImageRecord:
    """Read an image, with its caption and mask if ``options`` ask for them.

    Args:
        path: of the image.
        options: what is read, and at which size.
        mask_file: its mask, or None for its own alpha channel.

    Raises:
        Exception: one of ``READ_ERRORS``: the image, its mask or its caption cannot be used; :func:`read_error`
            gives the reason in words.
    """
    opened = OpenedImage(path, options.longest_side)
    image = _eight_bit(opened.image)
    mask = _mask(mask_file, opened, image, options.longest_side) if options.masks else None
    rgb, notes, size = _over_white(image), list(opened.notes), _target_size(opened, options.longest_side)
    if size != opened.size:
        notes.append(f"downscaled from {opened.size[0]} x {opened.size[1]}")
    rgb = rgb if rgb.size == size else rgb.resize(size, Image.Resampling.LANCZOS)
    if mask is not None and mask.size != size:
        mask = mask.resize(size, Image.Resampling.LANCZOS)
    caption, caption_notes = _caption(path) if options.captions else ("", [])
    notes += caption_notes + (["with mask"] if mask else [])
    return ImageRecord(path.name, _tensor(rgb), caption, _tensor(mask) if mask else None, tuple(notes))


def _target_size(opened: OpenedImage, longest_side: int) -> tuple[int, int]:
    """Return width and height as read: at most ``longest_side``, and at most what was decoded."""
    longest = min(longest_side or max(opened.size), max(opened.image.size))
    if longest >= max(opened.size):
        return opened.size
    width, height = opened.size
    return max(1, round(width * longest / max(width, height))), max(1, round(height * longest / max(width, height)))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray to 8 bits by its range, not by its largest value; Pillow itself reduces 16-bit color."""
    if image.mode == "F":
        raise ValueError("it holds floating-point values of unknown range; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it has 32 bits per value; save it with 8 or 16 bits")
    rounded = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), ROWS):  # in parts: whole, it would take eight times the image's memory
        rounded[row : row + ROWS] = (values[row : row + ROWS].astype(np.uint32) + 128) // 257
    return Image.fromarray(rounded)


def _over_white(image: Image.Image) -> Image.Image:
    """Composite over white and convert to RGB; otherwise colors hidden by transparency would show."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _mask(file: Path | None, opened: OpenedImage, image: Image.Image, longest_side: int) -> Image.Image | None:
    """Return the mask in ``file``, or else the alpha channel of ``image`` unless it is opaque everywhere."""
    if file is None:
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        return alpha if alpha and alpha.getextrema()[0] < 255 else None
    try:
        found = OpenedImage(file, longest_side)
        mask = _luminance(_eight_bit(found.image))
    except READ_ERRORS as error:
        raise ValueError(f"its mask {file.name}: {read_error(error)}") from error
    if found.size != opened.size:
        sizes = f"{found.size[0]} x {found.size[1]}, the image {opened.size[0]} x {opened.size[1]}"
        raise ValueError(f"its mask {file.name} is {sizes}; make them equal")
    return mask


def _luminance(mask: Image.Image) -> Image.Image:
    """Return a mask's gray values; of one that is white or black everywhere and cut out, its alpha channel."""
    if mask.has_transparency_data:
        rgba = mask.convert("RGBA")
        low, high = rgba.convert("L").getextrema()
        if low == high:
            return rgba.getchannel("A")
    return mask.convert("L")


def _caption(path: Path) -> tuple[str, list[str]]:
    """Return the image's caption as one line, or "" without one, and notes for the report.

    Raises:
        ValueError: it is longer than :data:`~models.validation.MAX_PROMPT_LENGTH`, or no text.
    """
    file = caption_path(path)
    if not file.is_file():
        return "", []
    with file.open("rb") as stream:
        content = stream.read(4 * MAX_PROMPT_LENGTH + 1)
    text, encoding = _decoded(content, file.name)
    text = " ".join(text.split())
    if len(text) > MAX_PROMPT_LENGTH or len(content) > 4 * MAX_PROMPT_LENGTH:
        raise ValueError(
            f"its text {file.name} has {file.stat().st_size} bytes; at most {MAX_PROMPT_LENGTH} characters are read"
        )
    return text, [] if encoding != "cp1252" else ["text read as Windows-1252"]


def _decoded(content: bytes, name: str) -> tuple[str, str]:
    """Return a file's text and its encoding."""
    utf16 = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ()
    for encoding in (*utf16, *CAPTION_ENCODINGS):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, encoding
    raise ValueError(f"its text {name} is no text in UTF-8; save it as UTF-8")


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def read_error(error: BaseException, path: Path | None = None) -> str:
    """Return in words why a file cannot be read.

    Args:
        error: what reading raised.
        path: of the file, to look at its beginning.
    """
    if path is not None and is_heic(path):
        return "it is HEIC, which is not read; save or export it as JPEG"
    if isinstance(error, MemoryError):
        return "it takes more memory than is free"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in any known format"
    if isinstance(error, OSError) and "truncated" in str(error):
        return "truncated: the end of the file is missing"
    if type(error) is ValueError and str(error):
        return str(error)
    return f"damaged ({str(error) or type(error).__name__})"


def is_heic(path: Path) -> bool:
    """Return whether the file is HEIC, the format of phones, whatever its name says."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS
