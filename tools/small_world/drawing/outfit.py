"""Draw clothes, glasses, earrings and hats. Units as in head.py."""

from __future__ import annotations

import numpy as np

from ..scene.identity import Identity
from .canvas import Frame, Shape
from .features import EYE_LEVEL, eye_offset
from .head import half_width
from .palette import CLOTHES, METALS, WHITE, Color, mixed, rgb, scaled, skin_tone
from .shapes import above, any_of, both, box, circle, ellipse, line, polygon, ring, twice, wave

STRAW = rgb("e3c27a")


def folds(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of cloth over shoulders: folds, darker to the lower right."""
    return wave(x * np.float32(1.1) - np.abs(x) * y * np.float32(0.5)) * np.float32(0.07) - (
        (x + np.float32(0.7)) * np.float32(0.06) + np.float32(0.02)
    )


def stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of broad light stripes across a shirt."""
    band = (wave(y * np.float32(2.6) + x * x * np.float32(-0.25)) - np.float32(0.5)) * np.float32(6)
    return np.minimum(np.maximum(band, 0), 1) * np.float32(0.55) + folds(x, y)


def knit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of ribbed wool."""
    return wave(x * np.float32(3.6)) * np.float32(0.2) - (np.float32(0.11) + x * np.float32(0.08))


def draw_clothes(frame: Frame, person: Identity) -> None:
    """Draw shoulders in a tee, a shirt with a collar, a hoodie, a striped shirt or a turtleneck."""
    color, w = CLOTHES[person.clothes_color], half_width(person)
    shoulders = any_of((ellipse(0, 2.24, 1.5, 1.02), box(-1.5, 2.2, 1.5, 6)))
    if person.clothes == "hoodie":
        frame.fill((-1.4, 0.6, 1.4, 2), ellipse(0, 1.3, w + 0.36, 0.52), scaled(color, 0.72), shade=folds)
        draw_throat(frame, person, w, 1.45)
    shade = {"stripes": stripes if person.clothes_color != "white" else dark_stripes}.get(person.clothes, folds)
    frame.fill((-1.7, 1.2, 1.7, 5), shoulders, color, shade=shade)
    if person.clothes == "turtleneck":
        frame.fill((-0.8, 0.8, 0.8, 1.7), box(-w * 0.62, 1.0, w * 0.62, 1.6, 0.1), color, shade=knit)
    else:
        draw_throat(frame, person, w * (0.55 if person.clothes == "collar" else 0.68), 1.42)
    if person.clothes == "collar":
        draw_collar(frame, color)
    elif person.clothes == "hoodie":
        cords = twice(line(0.26, 1.55, 0.24, 2.2, 0.045))
        frame.fill((-0.4, 1.4, 0.4, 2.4), cords, WHITE if person.clothes_color != "white" else rgb("5a5a66"))


def dark_stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of dark stripes on white cloth."""
    return folds(x, y) * np.float32(2) - stripes(x, y)


def draw_throat(frame: Frame, person: Identity, wide: float, deep: float) -> None:
    """Draw the skin in a neckline."""
    frame.fill((-1.1, 1.0, 1.1, 1.9), ellipse(0, deep - 0.12, wide, 0.26), scaled(skin_tone(person.skin), 0.84))


def draw_collar(frame: Frame, color: Color) -> None:
    """Draw two points of a collar and a row of buttons."""
    cloth = mixed(color, WHITE, 0.55) if sum(color) < 2.6 else rgb("b9bcc8")
    point = polygon((0.02, 1.62), (0.34, 1.2), (0.62, 1.42), (0.36, 1.86))
    frame.fill((-0.8, 1.1, 0.8, 2), twice(point), cloth)
    buttons = any_of([circle(0, y, 0.06) for y in (1.85, 2.2, 2.55)])
    frame.fill((-0.1, 1.7, 0.1, 2.7), buttons, scaled(cloth, 0.95))


def draw_glasses(frame: Frame, person: Identity) -> None:
    """Draw a frame with a bridge and a glint on each glass."""
    if person.glasses == "none":
        return
    at, w = eye_offset(person), half_width(person)
    half = min(0.27, at - 0.04)
    rim = {
        "round": circle(at, EYE_LEVEL + 0.02, half + 0.015),
        "square": box(at - half, EYE_LEVEL - 0.2, at + half + 0.02, EYE_LEVEL + 0.25, 0.05),
        "winged": polygon(
            (at - half, EYE_LEVEL - 0.17), (at + half + 0.17, EYE_LEVEL - 0.3),
            (at + half * 0.75, EYE_LEVEL + 0.2), (at - half * 0.6, EYE_LEVEL + 0.22),
        ),
    }[person.glasses]  # fmt: skip
    color, area = METALS[person.glasses_color], (-w - 0.15, EYE_LEVEL - 0.42, w + 0.15, EYE_LEVEL + 0.42)
    frame.fill(area, twice(rim), (0.85, 0.93, 1.0), opacity=0.14)
    bars = any_of(
        (line(0, EYE_LEVEL, at - half, EYE_LEVEL, 0.04), line(at + half, EYE_LEVEL, w, EYE_LEVEL - 0.04, 0.04))
    )
    frame.fill(area, twice(any_of((ring(rim, 0.05), bars))), color)


def draw_earrings(frame: Frame, person: Identity) -> None:
    """Draw golden hoops."""
    if person.earrings == "hoops":
        x = half_width(person) + 0.03
        frame.fill((-1.2, 0.15, 1.2, 0.7), twice(ring(circle(x, 0.42, 0.13), 0.045)), rgb("f4c430"), gloss)


def gloss(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of a gleam on metal."""
    return wave(x * np.float32(3) + y * np.float32(3)) * np.float32(0.3) - np.float32(0.2)


def draw_hat(frame: Frame, person: Identity) -> None:
    """Draw the hat, over the hair."""
    w, color = half_width(person), CLOTHES[person.hat_color]
    {"beanie": beanie, "top_hat": top_hat, "cap": cap, "sun_hat": sun_hat, "cone": cone}.get(
        person.hat, lambda *_: None
    )(frame, w, color)


def dome(w: float, top: float, level: float) -> Shape:
    """Return the upper half of an ellipse that sits on the head."""
    return both(ellipse(0, level, w, level - top), above(level + 0.02))


def beanie(frame: Frame, w: float, color: Color) -> None:
    """Draw a woolen hat with a folded rim and a bobble."""
    frame.fill((-0.4, -1.8, 0.4, -1.1), circle(0, -1.48, 0.22), mixed(color, WHITE, 0.6), shade=knit)
    frame.fill((-1.2, -1.5, 1.2, -0.4), dome(w + 0.12, -1.44, -0.58), color, shade=knit)
    rim = box(-w - 0.16, -0.8, w + 0.16, -0.52, 0.1)
    frame.fill(
        (-1.2, -0.9, 1.2, -0.3), rim, mixed(color, WHITE, 0.35) if sum(color) < 2.5 else scaled(color, 0.8), knit
    )


def top_hat(frame: Frame, w: float, color: Color) -> None:
    """Draw a tall hat with a band."""
    tall = w * 0.82
    frame.fill((-1.2, -1.8, 1.2, -0.5), box(-tall, -1.68, tall, -0.6, 0.05), color, shade=sheen)
    band = mixed(color, (0.05, 0.05, 0.08), 0.75) if sum(color) > 0.8 else rgb("d8d8de")
    frame.fill((-1.2, -0.95, 1.2, -0.5), box(-tall, -0.88, tall, -0.64), band)
    frame.fill((-1.5, -0.8, 1.5, -0.4), ellipse(0, -0.62, w + 0.36, 0.12), scaled(color, 0.9), shade=sheen)


def cap(frame: Frame, w: float, color: Color) -> None:
    """Draw a baseball cap, its peak to the right."""
    frame.fill((-1.2, -1.4, 1.2, -0.4), dome(w + 0.1, -1.34, -0.58), color, shade=sheen)
    frame.fill((-0.2, -1.2, 0.2, -0.6), ellipse(0.06, -0.95, 0.2, 0.2), mixed(color, WHITE, 0.75))
    peak = line(-0.1, -0.62, w + 0.42, -0.54, 0.1, 0.07)
    frame.fill((-0.4, -0.75, 1.6, -0.25), peak, scaled(color, 0.62))


def sun_hat(frame: Frame, w: float, color: Color) -> None:
    """Draw a straw hat with a broad brim and a ribbon of the hat's color."""
    frame.fill((-1.2, -1.4, 1.2, -0.4), dome(w + 0.02, -1.36, -0.6), STRAW, shade=weave)
    ribbon = both(ellipse(0, -0.64, w + 0.06, 0.72), box(-2, -1.04, 2, -0.64))
    frame.fill((-1.2, -1.2, 1.2, -0.4), ribbon, color, shade=sheen)
    frame.fill((-1.8, -0.85, 1.8, -0.25), ellipse(0, -0.62, w + 0.6, 0.17), STRAW, shade=weave)


def cone(frame: Frame, w: float, color: Color) -> None:
    """Draw a pointed hat with spots and a bobble."""
    tip = polygon((0, -1.8), (w * 0.78, -0.55), (-w * 0.78, -0.55))
    pale = mixed(color, WHITE, 0.75) if sum(color) < 2.5 else rgb("7a7a88")
    frame.fill((-0.9, -1.9, 0.9, -0.4), both(tip, above(-0.58, 0.12)), color, shade=sheen)
    spots = any_of([circle(x, y, 0.09) for x, y in ((-0.2, -0.8), (0.22, -0.95), (-0.06, -1.22))])
    frame.fill((-0.5, -1.5, 0.5, -0.6), spots, pale)
    frame.fill((-0.3, -2, 0.3, -1.5), circle(0, -1.72, 0.15), pale)


def sheen(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of smooth felt, lit from the left."""
    u = x + np.float32(0.3)
    return np.float32(0.1) - u * u * np.float32(0.24)


def weave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of plaited straw."""
    return wave(y * np.float32(4) + x * x) * np.float32(0.1) - np.float32(0.03) - x * np.float32(0.08)
