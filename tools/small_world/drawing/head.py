"""Draw the head: face, ears, neck, nose and cheeks. Units: the face is 2 high, from y = -1 (crown) to y = 1 (chin)."""

from __future__ import annotations

import numpy as np

from ..scene.identity import Identity
from .canvas import Frame, Shape
from .palette import Color, mixed, rgb, scaled, skin_tone
from .shapes import any_of, both, circle, ellipse, larger, line, twice

FRECKLES = ((0.24, 0.2), (0.4, 0.16), (0.33, 0.31), (0.5, 0.28), (0.13, 0.13))


def half_width(person: Identity) -> float:
    """Return half the width of the face at the cheeks."""
    return 0.6 + 0.24 * person.face_width


def face(person: Identity, grow: float = 0.0) -> Shape:
    """Return the face, enlarged by `grow`: an egg whose lower half is pointed (jaw 0) to square (jaw 1)."""
    egg, widening = ellipse(0, 0, half_width(person) + grow, 1 + grow), -0.34 + 0.78 * person.jaw

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        low = np.maximum(y, 0)
        return egg(x / (np.float32(1) + low * (np.float32(widening) * (np.float32(1.25) - low * np.float32(0.5)))), y)

    return distance


def roundness(width: float, depth: float = 0.17) -> Shape:
    """Return the shade of a round surface of this half width, lit from the upper left."""
    a, b = np.float32(1 / width), np.float32(0.75)

    def shade(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = x * a + np.float32(0.35), y * b + np.float32(0.3)
        return np.float32(0.05) - (u * u * np.float32(depth) + v * v * np.float32(depth * 0.55))

    return shade


def draw_neck(frame: Frame, person: Identity) -> None:
    """Draw the neck, in the shadow of the chin."""
    skin, w = skin_tone(person.skin), half_width(person)
    neck, shadow = line(0, 0.4, 0, 1.6, w * 0.5), ellipse(0.05, 0.98, w * 0.52, 0.22)
    frame.fill((-w, 0.5, w, 1.8), neck, scaled(skin, 0.84))
    frame.fill((-w, 0.6, w, 1.5), both(larger(neck, -0.07), shadow), scaled(skin, 0.6), soft=0.12, opacity=0.7)


def draw_face(frame: Frame, person: Identity) -> None:
    """Draw ears and face, with the light from the upper left."""
    skin, w = skin_tone(person.skin), half_width(person)
    ear = ellipse(w + 0.01, 0.06, 0.13, 0.2)
    frame.fill((-w - 0.2, -0.2, w + 0.2, 0.35), twice(ear), scaled(skin, 0.9))
    inner = ellipse(w + 0.03, 0.07, 0.06, 0.11)
    frame.fill((-w - 0.2, -0.2, w + 0.2, 0.35), twice(inner), scaled(skin, 0.7), opacity=0.8)
    frame.fill((-1, -1.05, 1, 1.05), face(person), skin, shade=roundness(w))


def draw_cheeks(frame: Frame, person: Identity) -> None:
    """Draw freckles, or rosy cheeks."""
    skin = skin_tone(person.skin)
    if person.cheeks == "rosy":
        blush = twice(circle(0.43, 0.28, 0.14))
        frame.fill((-0.75, 0.0, 0.75, 0.6), blush, mixed(skin, rgb("f0304a"), 0.7), soft=0.14, opacity=0.95)
    elif person.cheeks == "freckles":
        spots = twice(any_of([circle(x, y, 0.04) for x, y in FRECKLES]))
        dark = mixed(skin, rgb("5a2208") if person.skin < 0.6 else rgb("1a0a04"), 0.75)
        frame.fill((-0.6, 0.05, 0.6, 0.4), spots, dark)


def draw_nose(frame: Frame, person: Identity) -> None:
    """Draw a nose from small to big: a shadow on its right, a lit ridge, two nostrils."""
    skin, big = skin_tone(person.skin), person.nose
    half, tip = 0.055 + 0.19 * big, 0.17 + 0.12 * big
    dark: Color = mixed(scaled(skin, 0.62), rgb("7a2418"), 0.15)
    shadow = line(0.03, -0.08, 0.04, tip, 0.03, half * 0.95)
    frame.fill((-0.3, -0.2, 0.4, 0.6), shadow, dark, soft=0.04, opacity=0.75)
    body = line(-0.015, -0.1, -0.01, tip - 0.03, 0.03, half * 0.95)
    frame.fill((-0.3, -0.2, 0.4, 0.6), body, scaled(skin, 1.06), shade=roundness(half * 2.2, 0.12))
    nostrils = twice(ellipse(half * 0.5, tip + half * 0.55, half * 0.28, 0.035))
    frame.fill((-0.3, tip - 0.1, 0.3, tip + 0.3), nostrils, scaled(dark, 0.6), opacity=0.9)
