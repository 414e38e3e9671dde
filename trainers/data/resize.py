"""Pictures to the sizes that training takes: aspect kept in buckets, or square, cut out and scaled."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .dataset import Frame

BUCKET_UNIT = 64
"""Sides of buckets are multiples of this many pixels: a U-Net of four levels halves 8-pixel cells three times."""
SMALL_RESOLUTION = 256
"""Below this resolution buckets of 64 would be too coarse, and sides are multiples of one latent cell."""
MOST_ASPECT = 2.0
"""Long side over short side of a bucket; what a longer picture has more is cropped."""


@dataclass(frozen=True)
class Box:
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def bucket_size(height: int, width: int, resolution: int, cell: int, bucket: bool) -> tuple[int, int]:
    """Sides (height, width) of the crop for a picture.

    The rule of kohya's trainer, which gives SDXL's own sizes at 1024: sides are multiples of the unit, the area
    is at most that of the square (so the square's memory is the most), each side as long as the other lets it be.
    Among those, the one that crops least of the picture is taken.

    Args:
        resolution: side of the square, rounded to the unit.
        cell: pixels per latent cell.
        bucket: keep the aspect, up to ``MOST_ASPECT``; else the square.
    """
    unit = math.lcm(BUCKET_UNIT, cell) if resolution >= SMALL_RESOLUTION else cell
    side = max(1, round(resolution / unit))
    if not bucket:
        return side * unit, side * unit
    aspect = min(MOST_ASPECT, max(1 / MOST_ASPECT, width / height))
    sizes = {(side**2 // w, w) for w in range(1, min(2 * side, side**2) + 1)}
    sizes |= {(w, h) for h, w in sizes}
    rows, columns = max(sizes, key=lambda size: (_kept(aspect, size[1] / size[0]), size[0] * size[1]))
    return rows * unit, columns * unit


def _kept(aspect: float, bucket: float) -> float:
    """Share of a picture's area that a crop to another aspect leaves."""
    return round(min(aspect / bucket, bucket / aspect), 6)


def center_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """The largest box of the aspect of ``size`` in the middle of a picture."""
    scale = max(size[0] / height, size[1] / width)
    rows, columns = max(1, round(size[0] / scale)), max(1, round(size[1] / scale))
    return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def random_box(height: int, width: int, size: tuple[int, int], crop: float, generator: torch.Generator) -> Box:
    """A box of the same aspect anywhere in the picture, up to ``crop`` smaller on each side than the largest."""
    zoom, down, right = torch.rand(3, generator=generator).tolist()
    whole = center_box(height, width, size)
    rows, columns = (max(1, round(side * (1 - crop * zoom))) for side in (whole.height, whole.width))
    return Box(round(down * (height - rows)), round(right * (width - columns)), rows, columns)


def crop_and_resize(pixels: Tensor, size: tuple[int, int], box: Box | None = None) -> Tensor:
    """``[B, C, H, W]`` cut to ``box`` (the centre box without one), then scaled to ``size`` (bicubic, antialiased).

    One function for pictures and masks, so that they are framed alike. (kornia's crops do not antialias.)
    """
    box = box or center_box(*pixels.shape[-2:], size)
    cut = pixels[..., box.top : box.top + box.height, box.left : box.left + box.width]
    if tuple(cut.shape[-2:]) == size:
        return cut
    return F.interpolate(cut, size, mode="bicubic", antialias=True).clamp(0, 1)


def frame_of(height: int, width: int, box: Box, size: tuple[int, int], mirrored: bool) -> Frame:
    """What ``box``, scaled to ``size``, shows of a picture.

    A mirror image is a crop of the mirrored picture, so its left edge is what was the right one: as in the
    trainers of kohya and diffusers.
    """
    left = width - box.left - box.width if mirrored else box.left
    down, across = size[0] / box.height, size[1] / box.width
    return Frame(width, height, round(left * across), round(box.top * down), size[1], size[0])
