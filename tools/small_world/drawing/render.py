"""Render an identity in a scene as an image, with the same bytes on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..drawing import features, hair, head, outfit
from ..random_draws import scatter
from ..scene.identity import Identity, Thing
from ..scene.scene import Scene
from .canvas import Frame
from .palette import WHITE, Color
from .places import PLACES, RANDOM_VALUES
from .styles import PIXEL, STYLES
from .vases import draw_vase

SIZE = 64
"""Default side of an image in pixels."""
UNITS = {"portrait": 0.268, "close": 0.325, "far": 0.22}
"""Half the height of a face, in sides of the image."""
HEIGHTS = {"portrait": 0.5, "close": 0.53, "far": 0.48}
OFFSETS = {"left": -0.14, "center": 0.0, "right": 0.14}
TINTS: dict[str, Color] = {"night": (0.84, 0.88, 1.0), "sea": (0.86, 0.98, 1.0), "mountains": (1.0, 0.95, 0.9)}
"""Background -> color of its light on the subject."""


def render(thing: Thing, scene: Scene, size: int = SIZE) -> np.ndarray:
    """Return the image of a person or vase in a scene, [size, size, 3] uint8."""
    block = max(1, (PIXEL * size + 32) // 64) if scene.style == "pixel" else 1
    cells = -(-size // block)
    pixels = STYLES[scene.style](paint(thing, scene, cells, block / size))
    values = np.minimum(np.maximum(pixels, 0), 1) * np.float32(255) + np.float32(0.5)
    image = values.astype(np.uint8).transpose(1, 2, 0)
    if block > 1:
        image = image.repeat(block, 0).repeat(block, 1)[:size, :size]
    return np.ascontiguousarray(image)


def render_batch(things: Sequence[Thing], scenes: Sequence[Scene], size: int = SIZE) -> np.ndarray:
    """Return the image of each thing in its scene, [batch, size, size, 3] uint8."""
    images = np.empty((len(things), size, size, 3), np.uint8)
    for image, thing, scene in zip(images, things, scenes, strict=True):
        image[:] = render(thing, scene, size)
    return images


def paint(thing: Thing, scene: Scene, cells: int, side: float) -> np.ndarray:
    """Return the thing in front of its background, [3, cells, cells] float32; pixels have side `side`."""
    pixels = np.zeros((3, cells, cells), np.float32)
    PLACES[scene.background](Frame(pixels, side, (0.0, 0.0), 1.0), scatter(scene.variant, RANDOM_VALUES))
    frame = Frame(pixels, side, center(scene), UNITS[scene.framing], TINTS.get(scene.background, WHITE))
    if isinstance(thing, Identity):
        draw_person(frame, thing, scene.expression)
    else:
        draw_vase(frame, thing)
    return pixels


def center(scene: Scene) -> tuple[float, float]:
    """Return the position of the center of the face or vase, in sides of the image."""
    x = 0.5 + OFFSETS[scene.place] + 0.06 * (scene.shift_x - 0.5)
    return x, HEIGHTS[scene.framing] + 0.06 * (scene.shift_y - 0.5)


def draw_person(frame: Frame, person: Identity, expression: str) -> None:
    """Draw a person from back to front."""
    hair.draw_hair_behind(frame, person)
    head.draw_neck(frame, person)
    outfit.draw_clothes(frame, person)
    head.draw_face(frame, person)
    head.draw_cheeks(frame, person)
    features.draw_beard(frame, person)
    features.draw_mouth(frame, person, expression)
    features.draw_mustache(frame, person)
    head.draw_nose(frame, person)
    features.draw_eyes(frame, person, expression)
    hair.draw_hair_over(frame, person)
    features.draw_brows(frame, person, expression)
    outfit.draw_glasses(frame, person)
    outfit.draw_earrings(frame, person)
    outfit.draw_hat(frame, person)
