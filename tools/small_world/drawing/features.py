"""Draw eyes, brows, mouth and beard, which change with the expression. Units as in head.py."""

from __future__ import annotations

import numpy as np

from ..scene.identity import Identity
from .canvas import Frame
from .head import face
from .palette import EYES, HAIR, INK, WHITE, mixed, rgb, scaled, skin_tone
from .shapes import above, bent, both, box, circle, ellipse, line, moved, outside, ring, twice, wave

EYE_LEVEL, MOUTH_LEVEL = -0.1, 0.57


def eye_offset(person: Identity) -> float:
    """Return the distance of the eyes' centers from the middle of the face."""
    return 0.25 + 0.15 * person.eye_gap


def eye_half_width(person: Identity) -> float:
    """Return half the width of an eye."""
    return 0.145 + 0.1 * person.eye_size


def draw_eyes(frame: Frame, person: Identity, expression: str) -> None:
    """Draw white, iris, pupil, highlight and lashes; surprise opens the eyes, a wink closes the right one."""
    at, half = eye_offset(person), eye_half_width(person)
    high = half * (0.98 if expression == "surprised" else 0.72)
    area = (-at - 0.3, EYE_LEVEL - 0.32, at + 0.3, EYE_LEVEL + 0.32)
    if expression == "winking":
        area = (area[0], area[1], 0.0, area[3])
        draw_closed_eye(frame, person, at, half)
    iris, color = half * 0.68, EYES[person.eye_color]
    frame.fill(area, twice(ellipse(at, EYE_LEVEL - 0.03, half + 0.04, high + 0.05)), scaled(INK, 1.2), opacity=0.85)
    white = ellipse(at, EYE_LEVEL, half, high)
    frame.fill(area, twice(white), (0.98, 0.98, 0.97))
    frame.fill(area, twice(both(white, circle(at, EYE_LEVEL, iris))), color)
    frame.fill(area, twice(circle(at, EYE_LEVEL, iris * 0.4)), (0.04, 0.03, 0.05))
    glint = iris * 0.36
    for side in (-at, at) if area[2] else (-at,):
        x, y = side - iris * 0.38, EYE_LEVEL - iris * 0.42
        frame.fill((x - 0.1, y - 0.1, x + 0.1, y + 0.1), circle(x, y, glint), WHITE)


def draw_closed_eye(frame: Frame, person: Identity, at: float, half: float) -> None:
    """Draw a winking eye: an arc of lashes."""
    arc = moved(bent(box(-half, -0.04, half, 0.04, 0.03), -0.09 / (half * half)), at, EYE_LEVEL + 0.08)
    lid = scaled(skin_tone(person.skin), 0.85)
    frame.fill((at - 0.3, -0.4, at + 0.3, 0.25), ellipse(at, EYE_LEVEL, half, half * 0.6), lid, opacity=0.5)
    frame.fill((at - 0.35, -0.4, at + 0.35, 0.25), arc, INK)


def draw_brows(frame: Frame, person: Identity, expression: str) -> None:
    """Draw brows of the hair's color; surprise raises them, sadness lifts their inner ends."""
    at, half = eye_offset(person), eye_half_width(person)
    thick, tilt = 0.025 + 0.08 * person.brow, 0.4 * (person.brow_slant - 0.5)
    level = EYE_LEVEL - 0.13 - half - (0.12 if expression == "surprised" else 0.0)
    drop = 0.1 if expression == "sad" else 0.0
    inner, outer = max(at - half - 0.02, 0.05), at + half + 0.05
    stroke = line(inner, level + tilt - drop, outer, level - tilt * 0.8 + drop, thick, thick * 0.6)
    color = mixed(HAIR[person.hair_color], INK, 0.72)
    frame.fill((-outer - 0.1, level - 0.35, outer + 0.1, level + 0.35), twice(stroke), color)


def draw_mouth(frame: Frame, person: Identity, expression: str) -> None:
    """Draw lips, and teeth or a dark interior if the mouth is open."""
    half, skin = 0.14 + 0.26 * person.mouth, skin_tone(person.skin)
    lip = mixed(skin, rgb("b3122e"), 0.6) if person.skin < 0.75 else mixed(skin, rgb("c8384c"), 0.55)
    area = (-half - 0.12, MOUTH_LEVEL - 0.3, half + 0.12, MOUTH_LEVEL + 0.4)
    if expression == "surprised":
        o = ellipse(0, MOUTH_LEVEL + 0.05, half * 0.45 + 0.04, 0.17)
        frame.fill(area, ring(o, 0.045), lip)
        frame.fill(area, o, rgb("3a0a12"))
    elif expression in {"smiling", "winking"}:
        draw_grin(frame, half, lip)
    else:
        bend = (0.16 if expression == "sad" else -0.03) / (half * half)
        level = MOUTH_LEVEL - (0.06 if expression == "sad" else 0.0)
        frame.fill(area, moved(bent(ellipse(0, 0, half, 0.095), bend), 0, level), lip)
        crease = moved(bent(box(-half - 0.01, -0.02, half + 0.01, 0.02, 0.015), bend), 0, level - 0.01)
        frame.fill(area, crease, scaled(lip, 0.42))


def draw_grin(frame: Frame, half: float, lip: tuple[float, float, float]) -> None:
    """Draw an open smile: a crescent with a row of teeth."""
    deep = 0.1 + 0.36 * half
    top, bottom = MOUTH_LEVEL - 0.07, MOUTH_LEVEL - 0.09 + deep
    area = (-half - 0.2, MOUTH_LEVEL - 0.25, half + 0.2, MOUTH_LEVEL + 0.4)
    lower = above(bottom + 0.02, -(deep + 0.03) / (half * half) * 0.85)
    upper = outside(above(top, -0.05 / (half * half)))
    smile = both(lower, upper, box(0.015 - half, -2, half - 0.015, 2))
    frame.fill(area, lambda x, y: smile(x, y) - np.float32(0.05), lip)
    frame.fill(area, smile, rgb("4a0c16"))
    frame.fill(area, both(smile, above(top + deep * 0.42, -0.05 / (half * half))), (0.98, 0.97, 0.94))


def draw_beard(frame: Frame, person: Identity) -> None:
    """Draw a beard on the jaw or a goatee on the chin; the mustache is drawn after the mouth."""
    color = HAIR[person.hair_color]
    if person.beard == "full":
        fur = both(face(person, 0.1), outside(above(0.3, -0.42)))
        frame.fill((-1.1, -0.2, 1.1, 1.25), fur, color, shade=fuzz)
    elif person.beard == "goatee":
        frame.fill((-0.5, 0.5, 0.5, 1.3), ellipse(0, 0.92, 0.25, 0.22), color, shade=fuzz)


def draw_mustache(frame: Frame, person: Identity) -> None:
    """Draw two wings over the mouth, with every kind of beard."""
    if person.beard != "none":
        size = 0.34 if person.beard == "mustache" else 0.26
        wing = line(0.07, 0.43, size, 0.5, 0.085, 0.03)
        frame.fill((-0.5, 0.25, 0.5, 0.7), twice(wing), HAIR[person.hair_color], shade=fuzz)


def fuzz(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the shade of short hair: light and dark vertical strokes."""
    return wave(x * np.float32(3.4) + y * np.float32(0.6)) * np.float32(0.16) - np.float32(0.08)
