"""Versions of a picture: mirrored, cropped and coloured at random, each encoded once and drawn from at every step.

Pictures are encoded before training, because the VAE must not take up the device's memory during it. So the random
versions are made beforehand as well, ``variants`` of each picture. kornia's augmentation modules draw from the
global random state; the parameters are drawn here from our own generator, and kornia's functions apply them.
"""

import math
from dataclasses import dataclass

import torch
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from torch import Tensor

from ..engine.checks import check_number
from ..engine.rng import generator_for
from .dataset import Frame
from .resize import Box, center_box, crop_and_resize, frame_of, random_box

MOST_VARIANTS = 64
MOST = 0.5
"""Of ``crop`` and ``colour``."""
HUE = 0.1
"""Turns of the colour wheel per unit of ``colour``: hue is what a subject is known by, and turns least."""
TRIES = 20
"""Random crops tried for one that keeps half of the mask, before the centre is taken."""


@dataclass(frozen=True)
class Augmentation:
    """How far versions of a picture differ.

    Args:
        variants: versions of each picture; the first is the picture as it is.
        crop: how much smaller than the largest crop a random one may be on each side; 0 is off.
        colour: brightness, contrast and saturation are multiplied by up to 1 +- colour; 0 is off.
        seed: of every draw.
    """

    variants: int = 1
    crop: float = 0.0
    color: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("variants", self.variants, 1, MOST_VARIANTS)
        check_number("crop", self.crop, 0, MOST)
        check_number("colour", self.color, 0, MOST)
        if self.variants == 1 and self.varies:
            raise ValueError(
                f"variants is 1, but crop is {self.crop} and colour {self.color}: one version of each picture "
                "would be all that is seen; raise variants to 8, say, or set crop and colour to 0"
            )

    @property
    def varies(self) -> bool:
        return self.crop > 0 or self.color > 0


@dataclass(frozen=True)
class View:
    """One version of a picture.

    Args:
        box: the part shown.
        mirrored: left and right change places.
        colour: factors of brightness, contrast and saturation, and the hue's turn in radians; None leaves them.
    """

    box: Box
    mirrored: bool = False
    color: tuple[float, float, float, float] | None = None

    def picture(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """This version of ``[1, 3, H, W]`` at ``size``."""
        shown = self.mask(pixels, size)
        return shown if self.color is None else _recolour(shown, *self.color)

    def mask(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """The mask ``[1, 1, H, W]`` that goes with it."""
        shown = crop_and_resize(mask, size, self.box)
        return shown.flip(-1) if self.mirrored else shown

    def frame(self, height: int, width: int, size: tuple[int, int]) -> Frame:
        return frame_of(height, width, self.box, size, self.mirrored)


def views(
    shape: tuple[int, int], size: tuple[int, int], flip: bool, augmentation: Augmentation, index: int,
    mask: Tensor | None = None,
) -> list[View]:  # fmt: skip
    """The versions of picture number ``index``, of ``shape`` (height, width), to be trained on at ``size``.

    The first is the picture as it is. With ``flip`` every second one is mirrored.

    Args:
        mask: ``[H, W]``; random crops then keep at least half of it.
    """
    whole = View(center_box(*shape, size))
    if not augmentation.varies:
        return [whole, View(whole.box, mirrored=True)] if flip else [whole]
    drawn = [whole]
    for variant in range(1, augmentation.variants):
        generator = generator_for(augmentation.seed, index, variant)
        colour = _draw_colour(augmentation.color, generator)
        box = _draw_box(shape, size, augmentation.crop, generator, mask)
        drawn.append(View(box, flip and variant % 2 == 1, colour))
    return drawn


def _draw_box(
    shape: tuple[int, int], size: tuple[int, int], crop: float, generator: torch.Generator, mask: Tensor | None
) -> Box:
    whole = center_box(*shape, size)
    if crop == 0:
        return whole
    wanted = 0.0 if mask is None else _inside(mask, whole) / 2
    for _ in range(TRIES):
        box = random_box(*shape, size, crop, generator)
        if mask is None or _inside(mask, box) >= wanted > 0:
            return box
    return whole


def _inside(mask: Tensor, box: Box) -> float:
    return mask[box.top : box.top + box.height, box.left : box.left + box.width].sum().item()


def _draw_colour(strength: float, generator: torch.Generator) -> tuple[float, float, float, float] | None:
    brightness, contrast, saturation, hue = (torch.rand(4, generator=generator) * 2 - 1).tolist()
    if strength == 0:
        return None
    turn = strength * HUE * hue * 2 * math.pi
    return 1 + strength * brightness, 1 + strength * contrast, 1 + strength * saturation, turn


def _recolour(pixels: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    pixels = adjust_brightness_accumulative(pixels, brightness)
    pixels = adjust_contrast_with_mean_subtraction(pixels, contrast)
    pixels = adjust_saturation_with_gray_subtraction(pixels, saturation)
    return adjust_hue(pixels, hue).clamp(0, 1)
