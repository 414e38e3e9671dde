"""Opening image files within a budget of pixels, which is checked in the header, before anything is decoded.

A file of 40 KB can declare an image that takes gigabytes. Pillow's own limit stops at 179 million pixels, which a
photograph of a phone of 200 megapixels exceeds. Here a JPEG of that size is reduced while it is decoded, by the decoder
itself; other formats have to be decoded whole, so that their limit is lower.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

IMAGE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
"""Formats that are read; HEIF only where an extension has taught it to Pillow."""
MAX_PIXELS = 100_000_000
"""Pixels that are decoded at most: 400 MB as RGBA."""
MAX_JPEG_PIXELS = 250_000_000
"""Pixels of a JPEG, which is reduced by 2, 4 or 8 while it is decoded."""
REDUCED_ABOVE = 40_000_000
"""Pixels above which an image is reduced before any conversion, which would take several copies of it."""
MAX_SIDE = 100_000
"""Pixels of the longer side."""
ORIENTATION = 0x0112


class OpenedImage:
    """The first frame of an image file, upright, perhaps reduced.

    Args:
        path: of the file.
        longest_side: pixels that the caller needs of the longer side; 0 for all of them.

    Attributes:
        image: the frame, in the file's own mode.
        size: width and height before it was reduced, upright.
        notes: what was done to it, for the report.

    Raises:
        ValueError: it has too many pixels.
        Exception: whatever Pillow raises on a damaged file, see :data:`.image_reader.READ_ERRORS`.
    """

    def __init__(self, path: Path, longest_side: int):
        self.notes: list[str] = []
        Image.init()
        formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
        with _pillow_settings(), Image.open(path, formats=formats) as opened:
            stored = opened.size
            check_pixels(opened)
            if opened.format != "MPO" and _is_animated(opened):
                self.notes.append("first frame of several")
            orientation = opened.getexif().get(ORIENTATION)
            _draft(opened, longest_side)
            opened.load()
            if orientation in range(2, 9):
                self.notes.append("rotated upright")
            self.image = ImageOps.exif_transpose(_reduced(opened, longest_side))
        self.size: tuple[int, int] = stored[::-1] if orientation in range(5, 9) else stored


def check_pixels(image: Image.Image) -> None:
    """Require that an opened image, not yet decoded, has no more pixels than can be decoded.

    Raises:
        ValueError: it has; the message gives its size and the limit.
    """
    width, height = image.size
    drafted = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    limit = MAX_JPEG_PIXELS if drafted else MAX_PIXELS
    if max(width, height) > MAX_SIDE or width * height > limit:
        raise ValueError(
            f"{width} x {height} pixels, too many to be read: at most {limit / 1e6:.0f} million of this kind of file, "
            f"and {MAX_SIDE} of a side; save it smaller"
        )


def _draft(image: Image.Image, longest_side: int) -> None:
    """Let the decoder of a JPEG reduce a large image by 2, 4 or 8, to no less than twice what is needed."""
    pixels, scale = image.width * image.height, 1
    if pixels <= REDUCED_ABOVE or image.format not in ("JPEG", "MPO"):
        return
    while scale < 8 and (pixels / scale**2 > MAX_PIXELS or max(image.size) >= 4 * scale * longest_side > 0):
        scale *= 2
    image.draft(None, tuple(max(1, side // scale) for side in image.size))


def _reduced(image: Image.Image, longest_side: int) -> Image.Image:
    """Return a large image averaged over squares, with at least twice the pixels needed of the longer side."""
    factor = max(image.size) // (2 * longest_side) if longest_side else 1
    if factor < 2 or image.width * image.height <= REDUCED_ABOVE:
        return image
    if image.mode in ("P", "1"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return image
    exif = image.getexif()
    reduced = image.reduce(factor)
    reduced.info["exif"] = exif.tobytes()  # the orientation
    return reduced


def _is_animated(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True


@contextmanager
def _pillow_settings() -> Iterator[None]:
    """Inside the block Pillow rejects truncated images and leaves the number of pixels to :func:`check_pixels`.

    Both settings are global, and other extensions change them.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before
