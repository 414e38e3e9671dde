"""Pictures to the sizes that training takes: aspect kept in buckets, or square, cropped at the centre."""

import math

import torch.nn.functional as F
from torch import Tensor

BUCKET_UNIT = 64
"""Sides of buckets are multiples of this many pixels: a U-Net of four levels halves 8-pixel cells three times."""
SMALL_RESOLUTION = 256
"""Below this resolution buckets of 64 would be too coarse, and sides are multiples of one latent cell."""


def bucket_size(height: int, width: int, resolution: int, cell: int, bucket: bool) -> tuple[int, int]:
    """Sides of the crop for a picture: its aspect at an area of ``resolution^2``, or the square.

    Args:
        cell: pixels per latent cell.
        bucket: keep the aspect (at most 2 : 1 either way; more is cropped).
    """
    unit = math.lcm(BUCKET_UNIT, cell) if resolution >= SMALL_RESOLUTION else cell
    aspect = min(2.0, max(0.5, width / height)) if bucket else 1.0
    return _round_to(resolution / math.sqrt(aspect), unit), _round_to(resolution * math.sqrt(aspect), unit)


def fit_picture(pixels: Tensor, height: int, width: int) -> Tensor:
    """``[B, C, H, W]`` cropped at the centre to the aspect wanted, then scaled (bicubic, antialiased)."""
    scale = max(height / pixels.shape[-2], width / pixels.shape[-1])
    cropped = _centre(pixels, round(height / scale), round(width / scale))
    if tuple(cropped.shape[-2:]) == (height, width):
        return cropped
    return F.interpolate(cropped, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def _centre(pixels: Tensor, height: int, width: int) -> Tensor:
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    return pixels[..., top : top + height, left : left + width]


def _round_to(value: float, unit: int) -> int:
    return max(unit, round(value / unit) * unit)
