"""Resizing: bucket sizes that keep the aspect ratio, or squares; crops; SDXL's size conditioning."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .dataset import Frame

BUCKET_UNIT = 64
"""Sides of buckets are multiples of this many pixels: a U-Net of four resolutions halves 8-pixel cells three times."""
SMALL_RESOLUTION = 256
"""Below this resolution buckets of 64 would be too coarse, and sides are multiples of one latent cell."""
MAX_ASPECT = 2.0
"""Long side over short side of a bucket; a longer image is cropped to it."""


@dataclass(frozen=True)
class Box:
    """A rectangle in an image, in pixels of that image."""

    top: int
    left: int
    height: int
    width: int


def bucket_size(height: int, width: int, resolution: int, cell: int, bucket: bool) -> tuple[int, int]:
    """Return the sides (height, width) that an image is cropped and resized to.

    The rule of kohya's trainer, which yields SDXL's own sizes at 1024: sides are multiples of the unit, the area
    is at most that of the square (so the square needs the most memory), each side is as long as the other allows.
    Among those, the size that crops least of the image is taken.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        resolution: side of the square, rounded to the unit.
        cell: pixels per latent cell.
        bucket: keep the aspect ratio, up to ``MAX_ASPECT``; otherwise return the square.
    """
    unit = math.lcm(BUCKET_UNIT, cell) if resolution >= SMALL_RESOLUTION else cell
    side = max(1, round(resolution / unit))
    if not bucket:
        return side * unit, side * unit
    aspect = min(MAX_ASPECT, max(1 / MAX_ASPECT, width / height))
    sizes = {(side**2 // w, w) for w in range(1, min(2 * side, side**2) + 1)}
    sizes |= {(w, h) for h, w in sizes}
    rows, columns = max(sizes, key=lambda size: (_kept_share(aspect, size[1] / size[0]), size[0] * size[1]))
    return rows * unit, columns * unit


def _kept_share(aspect: float, bucket: float) -> float:
    """Return the share of an image's area that a crop to another aspect ratio keeps."""
    return round(min(aspect / bucket, bucket / aspect), 6)


def center_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """Return the largest box with the aspect ratio of ``size`` in the center of an image.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        size: (height, width) of the crop after resizing.
    """
    scale = max(size[0] / height, size[1] / width)
    rows, columns = max(1, round(size[0] / scale)), max(1, round(size[1] / scale))
    return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def random_box(height: int, width: int, size: tuple[int, int], crop: float, generator: torch.Generator) -> Box:
    """Draw a box with the aspect ratio of ``size`` anywhere in the image.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        size: (height, width) of the crop after resizing.
        crop: how much smaller on each side than the largest box it may be, in [0, 1).
        generator: of the three random numbers that are drawn.
    """
    zoom, down, right = torch.rand(3, generator=generator).tolist()
    largest = center_box(height, width, size)
    rows, columns = (max(1, round(side * (1 - crop * zoom))) for side in (largest.height, largest.width))
    return Box(round(down * (height - rows)), round(right * (width - columns)), rows, columns)


def crop_and_resize(pixels: Tensor, size: tuple[int, int], box: Box | None = None) -> Tensor:
    """Crop ``[B, C, H, W]`` to ``box``, then resize it to ``size`` (bicubic, antialiased).

    One function for images and masks, so both are cropped alike. (kornia's crops do not antialias.)

    Args:
        pixels: images or masks in [0, 1].
        size: (height, width) of the result.
        box: the part that is kept; the center box without one.
    """
    box = box or center_box(*pixels.shape[-2:], size)
    cropped = pixels[..., box.top : box.top + box.height, box.left : box.left + box.width]
    if tuple(cropped.shape[-2:]) == size:
        return cropped
    return F.interpolate(cropped, size, mode="bicubic", antialias=True).clamp(0, 1)


def frame_of(shape: tuple[int, int], box: Box, size: tuple[int, int], mirrored: bool) -> Frame:
    """Return SDXL's size conditioning of a crop.

    A mirror image is a crop of the mirrored image, so its left edge is the right edge of the original: as in the
    trainers of kohya and diffusers.

    Args:
        shape: (height, width) of the whole image in pixels.
        box: the crop, in pixels of the whole image.
        size: (height, width) that the crop is resized to.
        mirrored: whether the crop is mirrored.
    """
    height, width = shape
    left = width - box.left - box.width if mirrored else box.left
    down, across = size[0] / box.height, size[1] / box.width
    return Frame(
        width=width, height=height, crop_w=round(left * across), crop_h=round(box.top * down),
        target_width=size[1], target_height=size[0],
    )  # fmt: skip
