"""Augmentation: variants of an image, flipped, cropped and color-jittered at random.

Images are encoded before training, because the VAE must not occupy the device's memory during it. Therefore the
variants of each image are drawn and encoded beforehand as well. kornia's augmentation modules draw from the global
random state; here the parameters are drawn from our own generator, and kornia's functions apply them. Its 421 modules
are imported when colors are first jittered.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_number
from ..engine.rng import generator_for
from .dataset import Frame
from .resize import Box, center_box, crop_and_resize, frame_of, random_box

MAX_VARIANTS = 64
MAX_STRENGTH = 0.5
"""Upper bound of ``crop`` and ``color``."""
HUE = 0.1
"""Turns of the color wheel per unit of ``color``: a subject is recognized by its hue first, so it changes least."""
MAX_TRIES = 20
"""Random crops tried for one that keeps half of the mask, before the center crop is taken."""

ColorJitter = tuple[float, float, float, float]
"""Factors of brightness, contrast and saturation, and the rotation of the hue in radians."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Configure how far the variants of an image differ.

    Args:
        variants: variants of each image; the first is the image itself.
        crop: how much smaller than the largest crop a random one may be on each side, in [0, 0.5]; 0 is off.
        color: brightness, contrast and saturation are multiplied by a factor in [1 - color, 1 + color]; 0 is off.
        seed: of every random draw.

    Raises:
        ValueError: a setting is out of range, or ``crop`` or ``color`` is set with a single variant; the message
            names the inputs of the node.
    """

    variants: int = 1
    crop: float = 0.0
    color: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("variants", self.variants, 1, MAX_VARIANTS)
        check_number("crop", self.crop, 0, MAX_STRENGTH)
        check_number("colour", self.color, 0, MAX_STRENGTH)  # the node's input id
        if self.variants == 1 and self.is_random:
            raise ValueError(
                f"variants is 1, but crop is {self.crop} and colour is {self.color}: training would see one variant "
                "of each image only; raise variants to 8, say, or set crop and colour to 0"
            )

    @property
    def is_random(self) -> bool:
        """Whether any variant is drawn at random."""
        return self.crop > 0 or self.color > 0


@dataclass(frozen=True)
class View:
    """One variant of an image: a crop, perhaps mirrored and color-jittered.

    Args:
        box: the part of the image that is shown.
        mirrored: whether left and right are swapped.
        color: the color jitter, or None for unchanged colors.
    """

    box: Box
    mirrored: bool = False
    color: ColorJitter | None = None

    def render(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return this variant of the image ``[1, 3, H, W]`` at ``size`` (height, width)."""
        cropped = self.apply_to_mask(pixels, size)
        return cropped if self.color is None else _jitter(cropped, *self.color)

    def apply_to_mask(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the mask ``[1, 1, H, W]`` of this variant at ``size``: cropped and mirrored, colors unchanged."""
        cropped = crop_and_resize(mask, size, self.box)
        return cropped.flip(-1) if self.mirrored else cropped

    def frame(self, height: int, width: int, size: tuple[int, int]) -> Frame:
        """Return the size conditioning of this variant.

        Args:
            height: of the whole image in pixels.
            width: of the whole image in pixels.
            size: (height, width) of the variant in pixels.
        """
        return frame_of((height, width), self.box, size, self.mirrored)


def draw_views(
    shape: tuple[int, int],
    size: tuple[int, int],
    augmentation: Augmentation,
    *,
    flip: bool,
    index: int,
    mask: Tensor | None = None,
) -> list[View]:
    """Draw the variants of an image; the first is the image itself.

    Args:
        shape: (height, width) of the image in pixels.
        size: (height, width) to train at.
        augmentation: number and strength of the variants.
        flip: whether every second variant is mirrored.
        index: of the image in the dataset; selects its random numbers.
        mask: ``[H, W]``; random crops keep at least half of it.
    """
    center = View(center_box(*shape, size))
    if not augmentation.is_random:
        return [center, View(center.box, mirrored=True)] if flip else [center]
    drawn = [center]
    for variant in range(1, augmentation.variants):
        generator = generator_for(augmentation.seed, index, variant)
        jitter = _draw_jitter(augmentation.color, generator)
        box = _draw_box(shape, size, augmentation.crop, generator, mask)
        drawn.append(View(box, flip and variant % 2 == 1, jitter))
    return drawn


def _draw_box(
    shape: tuple[int, int], size: tuple[int, int], crop: float, generator: torch.Generator, mask: Tensor | None
) -> Box:
    center = center_box(*shape, size)
    if crop == 0:
        return center
    required = 0.0 if mask is None else _sum_inside(mask, center) / 2
    for _ in range(MAX_TRIES):
        box = random_box(*shape, size, crop, generator)
        if mask is None or _sum_inside(mask, box) >= required > 0:
            return box
    return center


def _sum_inside(mask: Tensor, box: Box) -> float:
    return mask[box.top : box.top + box.height, box.left : box.left + box.width].sum().item()


def _draw_jitter(strength: float, generator: torch.Generator) -> ColorJitter | None:
    brightness, contrast, saturation, hue = (torch.rand(4, generator=generator) * 2 - 1).tolist()
    if strength == 0:
        return None
    rotation = strength * HUE * hue * 2 * math.pi
    return 1 + strength * brightness, 1 + strength * contrast, 1 + strength * saturation, rotation


def _jitter(pixels: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    from kornia.enhance import (
        adjust_brightness_accumulative,
        adjust_contrast_with_mean_subtraction,
        adjust_hue,
        adjust_saturation_with_gray_subtraction,
    )

    pixels = adjust_brightness_accumulative(pixels, brightness)
    pixels = adjust_contrast_with_mean_subtraction(pixels, contrast)
    pixels = adjust_saturation_with_gray_subtraction(pixels, saturation)
    return adjust_hue(pixels, hue).clamp(0, 1)
