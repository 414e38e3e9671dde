"""Draw vases, the second class, with a pattern and flowers. Units: the vase extends from y = -0.9 to y = 1.15."""

from __future__ import annotations

import numpy as np

from ..scene.identity import Vase
from .canvas import Frame, Shape
from .palette import CLOTHES, GLAZES, rgb, scaled
from .shapes import any_of, circle, ellipse, line, ring, wave

FOOT = 1.15
PROFILES = {
    "amphora": (0.42, 0.3, 0.5, 0.95, 0.8, 0.45, 0.36),
    "bottle": (0.26, 0.2, 0.22, 0.5, 0.9, 0.95, 0.7),
    "bowl": (1.1, 1.1, 1.06, 1.0, 0.88, 0.62, 0.4),
    "urn": (0.7, 0.5, 0.72, 1.0, 1.0, 0.6, 0.7),
    "cylinder": (0.62, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6),
}
"""Half widths from the rim to the foot, at equal distances."""


def rim_level(vase: Vase) -> float:
    """Return the height of the rim."""
    return FOOT - (1.35 + 0.55 * vase.height) * (0.72 if vase.form == "bowl" else 1.0)


def body(vase: Vase) -> Shape:
    """Return the outline: half width as a smooth curve through the form's profile."""
    top, wide = rim_level(vase), 0.5 + 0.36 * vase.width
    knots = np.array(PROFILES[vase.form], np.float32) * np.float32(wide)
    steps = len(knots) - 1

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        t = np.minimum(
            np.maximum((y[:, 0] - np.float32(top)) * np.float32(steps / (FOOT - top)), 0), np.float32(steps - 1e-3)
        )
        at = np.floor(t).astype(np.int64)
        t = t - at.astype(np.float32)
        before, here, there, after = (knots[np.minimum(np.maximum(at + i, 0), steps)] for i in (-1, 0, 1, 2))
        # Catmull-Rom: smooth through all knots.
        half = here + t * (
            there - before + t * (2 * before - 5 * here + 4 * there - after + t * (3 * (here - there) + after - before))
        ) * np.float32(0.5)
        side = np.abs(x) - half[:, None]
        return np.maximum(side * np.float32(0.85), np.maximum(np.float32(top) - y, y - np.float32(FOOT)))

    return distance


def glaze_shade(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of a glazed round body: a bright streak on the left, dark towards both sides."""
    u = x + np.float32(0.22)
    streak = np.maximum(np.float32(0.3) - np.abs(u) * np.float32(2.4), 0)
    return streak - u * u * np.float32(0.36)


def pattern(vase: Vase) -> Shape:
    """Return the shape that is painted in the second color."""
    at = np.float32(0.15)
    return {
        "plain": lambda x, y: np.ones((y.shape[0], x.shape[1]), np.float32),
        "bands": lambda x, y: (
            (wave((y + x * x * np.float32(0.12)) * np.float32(2.3)) - np.float32(0.5)) * np.float32(0.2) + 0 * x
        ),
        "dots": lambda x, y: np.sqrt(cell(x, 3) ** 2 + cell(y - at, 3) ** 2) - np.float32(0.1),
        "zigzag": lambda x, y: np.abs(cell(y + wave(x * np.float32(2.4)) * np.float32(0.2), 1.9)) - np.float32(0.1),
        "checks": lambda x, y: cell(x, 3.2) * cell(y, 3.2) * np.float32(6),
    }[vase.pattern]


def cell(t: np.ndarray, many: float) -> np.ndarray:
    """Return the signed distance from the middle of the nearest of `many` cells per unit."""
    return (t * np.float32(many) - np.floor(t * np.float32(many)) - np.float32(0.5)) * np.float32(1 / many)


def draw_vase(frame: Frame, vase: Vase) -> None:
    """Draw shadow, flowers, handles, body, pattern and the dark opening."""
    outline, top, wide = body(vase), rim_level(vase), 0.5 + 0.36 * vase.width
    frame.fill((-1.4, 0.95, 1.5, 1.45), ellipse(0.12, FOOT, wide * 1.05, 0.12), rgb("101018"), soft=0.16, opacity=0.5)
    draw_flowers(frame, vase, top)
    draw_handles(frame, vase, top, wide)
    area, inside = (-1.1, top - 0.1, 1.1, FOOT + 0.1), pattern(vase)
    frame.fill(area, outline, GLAZES[vase.glaze], shade=glaze_shade)
    if vase.pattern != "plain":
        frame.fill(area, lambda x, y: np.maximum(outline(x, y), inside(x, y)), GLAZES[vase.paint], shade=glaze_shade)
    mouth = PROFILES[vase.form][0] * wide
    frame.fill((-1.2, top - 0.2, 1.2, top + 0.2), ellipse(0, top, mouth + 0.03, 0.09), scaled(GLAZES[vase.glaze], 1.25))
    frame.fill((-1.2, top - 0.2, 1.2, top + 0.2), ellipse(0, top, mouth - 0.03, 0.05), scaled(GLAZES[vase.glaze], 0.3))


def draw_handles(frame: Frame, vase: Vase, top: float, wide: float) -> None:
    """Draw two handles, or one on the right."""
    loop = ring(ellipse(wide * 0.72, (top * 2 + FOOT) / 3, wide * 0.52, 0.3), 0.075)
    if vase.handles == "two":
        frame.fill((-1.6, top - 0.2, 1.6, 1.0), lambda x, y: loop(np.abs(x), y), scaled(GLAZES[vase.glaze], 0.8))
    elif vase.handles == "one":
        frame.fill((0, top - 0.2, 1.6, 1.0), loop, scaled(GLAZES[vase.glaze], 0.8))


def draw_flowers(frame: Frame, vase: Vase, top: float) -> None:
    """Draw a bunch of three flowers, or a spray of leaves."""
    if vase.flowers == "none":
        return
    heads = ((-0.42, top - 0.45), (0.03, top - 0.7), (0.46, top - 0.4))
    stems = any_of([line(0, top + 0.1, x, y, 0.035) for x, y in heads])
    frame.fill((-0.8, top - 1.1, 0.8, top + 0.1), stems, rgb("3a7d35"))
    for x, y in heads:
        near = (x - 0.4, y - 0.4, x + 0.4, y + 0.4)
        if vase.flowers == "leaves":
            frame.fill(
                near, any_of((ellipse(x, y, 0.12, 0.28), ellipse(x * 0.6, y + 0.22, 0.2, 0.09))), rgb("2f9148"), leaf
            )
        elif vase.flowers == "tulips":
            cup = any_of(
                (ellipse(x - 0.09, y, 0.1, 0.2), ellipse(x + 0.09, y, 0.1, 0.2), ellipse(x, y + 0.02, 0.12, 0.19))
            )
            frame.fill(near, cup, CLOTHES[vase.flower_color], leaf)
        else:
            petals = any_of((ellipse(x, y, 0.24, 0.09), ellipse(x, y, 0.09, 0.24), circle(x, y, 0.16)))
            frame.fill(near, petals, CLOTHES[vase.flower_color])
            frame.fill(near, circle(x, y, 0.085), rgb("f7c325") if vase.flower_color != "yellow" else rgb("7a4a1c"))


def leaf(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of a leaf: light from above, with veins."""
    return wave(x * np.float32(5)) * np.float32(0.12) - np.float32(0.08) - y * np.float32(0.06)
