"""Draw hair: a part behind the head and a part over the forehead, with strands. Units as in head.py."""

from __future__ import annotations

import numpy as np

from ..scene.identity import Identity
from .canvas import Frame, Shape
from .head import half_width
from .palette import HAIR, Color, scaled, skin_tone
from .shapes import above, any_of, both, box, circle, ellipse, line, twice, wave


def hair_color(person: Identity) -> Color:
    """Return the color of the hair."""
    return HAIR[person.hair_color]


def strands(lean: float, fine: float = 2.6) -> Shape:
    """Return the shade of strands that spread from the crown, with a gleam; `lean` sweeps them to one side."""

    def shade(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along = y + np.float32(1.6)
        across = x * (np.float32(fine) + np.float32(0.9) / (np.maximum(along, 0.3))) + y * np.float32(lean)
        gleam = y + np.float32(0.72) + x * x * np.float32(0.4) + (x * np.float32(0.15))
        gleam = np.maximum(np.float32(0.16) - gleam * gleam * np.float32(2.5), 0)
        return wave(across) * np.float32(0.17) - np.float32(0.1) + gleam

    return shade


def curls(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of curls: a lattice of light and dark knots, lit from above."""
    u, v = x + wave(y * np.float32(1.3)) * np.float32(0.13), y + wave(x * np.float32(1.7)) * np.float32(0.15)
    knot = wave(u * np.float32(2.9) + v * np.float32(0.9)) + wave(v * np.float32(3.1) - u * np.float32(1.1))
    return knot * np.float32(0.14) - (np.float32(0.16) + (y + np.float32(0.3)) * np.float32(0.09))


def draw_hair_behind(frame: Frame, person: Identity) -> None:
    """Draw the hair behind neck and shoulders."""
    w, color = half_width(person), scaled(hair_color(person), 0.8)
    if person.hair == "long":
        flow = any_of((ellipse(0, -0.2, w + 0.26, 1.02), box(-w - 0.26, -0.2, w + 0.26, 1.75, 0.25)))
        frame.fill((-1.3, -1.3, 1.3, 1.9), flow, color, shade=strands(0.4))
    elif person.hair == "bob":
        cut = any_of((ellipse(0, -0.18, w + 0.27, 1.02), box(-w - 0.27, -0.2, w + 0.27, 0.92, 0.12)))
        frame.fill((-1.3, -1.3, 1.3, 1.0), cut, color, shade=strands(0.1))
    elif person.hair == "curly":
        cloud = ellipse(0, -0.28, w + 0.48, 1.14)
        frame.fill((-1.6, -1.7, 1.6, 1.2), lambda x, y: cloud(x, y) - curls(x, y) * np.float32(0.5), color, curls)
    elif person.hair == "pigtails":
        tail = any_of((ellipse(w + 0.27, 0.55, 0.21, 0.55), circle(w + 0.2, 0.05, 0.14)))
        frame.fill((-1.5, -0.2, 1.5, 1.2), twice(tail), color, shade=strands(0.5))


def hairline(person: Identity) -> Shape | None:
    """Return the signed distance to the hairline (negative above it), or None for a bald head."""
    w = half_width(person)
    if person.hair in {"bald", "mohawk"}:
        return None
    if person.hair == "parting":
        return lambda x, y: above(-0.78)(x, y) - sweep(x) * np.float32(0.34 / w)
    level, bend = {
        "crop": (-0.66, 0.75),
        "bob": (-0.6, 0.16),
        "long": (-0.74, 1.15),
        "curly": (-0.66, 0.5),
        "bun": (-0.7, 0.9),
        "pigtails": (-0.62, 0.72),
    }[person.hair]
    return above(level, bend / (w * w) * 0.55)


def sweep(x: np.ndarray) -> np.ndarray:
    """Return the distance from the parting, at x = -0.28: small to its left, falling far to its right."""
    side = x + np.float32(0.28)
    return np.maximum(side, side * np.float32(-1.1)) + np.maximum(side - np.float32(0.62), 0) * np.float32(2.4)


def draw_hair_over(frame: Frame, person: Identity) -> None:
    """Draw the hair on the head; with a hat, the hat covers its upper part."""
    w, color, line_ = half_width(person), hair_color(person), hairline(person)
    if line_ is not None:
        skull = ellipse(0, -0.06, w + 0.13, 1.08 if person.hair in {"crop", "curly"} else 1.14)
        low = {"bob": 0.85, "long": 1.5, "crop": 0.0}.get(person.hair, 0.12)
        cap = both(skull, line_, box(-1.5, -2, 1.5, low))
        lean = {"parting": -1.3, "bun": 0.0, "long": 0.3}.get(person.hair, 0.1)
        shade = curls if person.hair == "curly" else strands(lean)
        frame.fill((-1.3, -1.3, 1.3, low + 0.1), cap, color, shade=shade)
    draw_extras(frame, person)


def draw_extras(frame: Frame, person: Identity) -> None:
    """Draw what stands out from the cap of hair: a gleaming scalp, locks, a bun or a crest."""
    w, color = half_width(person), hair_color(person)
    if person.hair in {"long", "bob"}:
        down = 1.55 if person.hair == "long" else 0.8
        lock = line(w + 0.1, -0.35, w + 0.14, down, 0.12, 0.15)
        frame.fill((-1.3, -0.6, 1.3, down + 0.2), twice(lock), color, shade=strands(0.5))
    elif person.hair == "pigtails":
        frame.fill((-1.3, -0.1, 1.3, 0.3), twice(circle(w + 0.2, 0.08, 0.1)), (0.95, 0.25, 0.4))
    elif person.hat == "none" and person.hair == "bald":
        frame.fill(
            (-0.7, -1, 0.2, -0.4), ellipse(-0.26, -0.7, 0.2, 0.1), scaled(skin_tone(person.skin), 1.3), None, 0.2, 0.6
        )
    elif person.hat == "none" and person.hair == "bun":
        frame.fill((-0.6, -1.65, 0.6, -0.8), circle(0, -1.24, 0.34), color, shade=bun_shade)
    elif person.hat == "none" and person.hair == "mohawk":
        draw_crest(frame, color)


def draw_crest(frame: Frame, color: Color) -> None:
    """Draw a mohawk: five spikes that fan out over a strip of hair."""
    tips = ((-0.42, -1.42), (-0.22, -1.6), (0.0, -1.68), (0.22, -1.6), (0.42, -1.42))
    spikes = [line(x * 0.45, -0.82, x, y, 0.17, 0.03) for x, y in tips]
    strip = both(ellipse(0, -0.78, 0.26, 0.36), above(-0.5))
    frame.fill((-0.7, -1.8, 0.7, -0.4), any_of([*spikes, strip]), color, shade=strands(0.0, 3.4))


def bun_shade(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of a bun of strands, lit from the upper left."""
    return wave(x * np.float32(1.6) - y * np.float32(2.6)) * np.float32(0.16) - (x + y + np.float32(1.3)) * np.float32(
        0.2
    )
