"""Draw the ten backgrounds. Units: the image is 1 wide and 1 high, (0, 0) at its top left; `r`: random values."""

from __future__ import annotations

import numpy as np

from .canvas import Frame, Shape
from .palette import WHITE, Color, mixed, rgb, scaled
from .shapes import any_of, box, circle, ellipse, line, polygon, wave

EVERYWHERE = (-0.1, -0.1, 1.1, 1.1)


def hills(level: float, height: float, shift: float, many: float) -> Shape:
    """Return the shape of land with a rolling skyline: below `level`, with waves of this height."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        t = wave(x * np.float32(many) + np.float32(shift))
        return np.float32(level) - t * t * (np.float32(3) - np.float32(2) * t) * np.float32(height) - y

    return distance


def peaks(level: float, height: float, shift: float, many: float) -> Shape:
    """Return the shape of mountains: the sum of two sawtooth skylines."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        t = wave(x * np.float32(many) + np.float32(shift)) * np.float32(0.7)
        t = t + wave(x * np.float32(many * 2.7) + np.float32(shift * 1.7)) * np.float32(0.3)
        return (np.float32(level) - t * np.float32(height) - y) * np.float32(0.6)

    return distance


def glow(color: Color, frame: Frame, x: float, y: float, r: float, halo: float) -> None:
    """Draw a shining disc with a halo."""
    frame.fill(EVERYWHERE, circle(x, y, r), color, soft=halo, opacity=0.55)
    frame.fill((x - r, y - r, x + r, y + r), circle(x, y, r), color)


def cloud(frame: Frame, x: float, y: float, size: float, opacity: float = 0.85) -> None:
    """Draw a cloud of three puffs on a flat base."""
    puffs = any_of((
        ellipse(x, y, size, size * 0.3), circle(x - size * 0.3, y - size * 0.16, size * 0.3),
        circle(x + size * 0.22, y - size * 0.22, size * 0.38),
    ))  # fmt: skip
    frame.fill((x - size, y - size, x + size, y + size * 0.5), puffs, WHITE, soft=0.02, opacity=opacity)


def fir(frame: Frame, x: float, foot: float, tall: float, color: Color, snow: bool = False) -> None:
    """Draw a fir of three tiers."""
    frame.fill((x - 0.03, foot - 0.06, x + 0.03, foot), box(x - 0.012, foot - 0.06, x + 0.012, foot), rgb("4a2e1a"))
    for share in (0.0, 0.3, 0.56):
        low, wide = foot - 0.04 - tall * share * 0.95, tall * (0.3 - 0.2 * share)
        high = low - tall * 0.46
        tier = polygon((x, high), (x + wide, low), (x - wide, low))
        frame.fill((x - wide, high, x + wide, low), tier, scaled(color, 0.85 + 0.5 * share))
        if snow:
            top = polygon(
                (x, high), (x + wide * 0.5, high + (low - high) * 0.5), (x - wide * 0.5, high + (low - high) * 0.5)
            )
            frame.fill((x - wide, high, x + wide, low), top, rgb("f4f8ff"))


def studio(frame: Frame, r: list[float]) -> None:
    """Draw a paper backdrop with a pool of light."""
    frame.wash(rgb("9aa3b4"), rgb("c9cdd6"), 0.0, 0.85)
    frame.fill(EVERYWHERE, circle(0.3 + 0.4 * r[0], 0.3 + 0.2 * r[1], 0.22), rgb("eef0f4"), soft=0.7, opacity=0.9)
    frame.wash(rgb("b3b8c4"), rgb("8f96a6"), 0.86, 1.0)


def snow(frame: Frame, r: list[float]) -> None:
    """Draw white hills with firs, and falling flakes."""
    frame.wash(rgb("86a9dc"), rgb("dfeaf8"), 0.0, 0.55)
    frame.fill(EVERYWHERE, hills(0.56, 0.14, r[0], 1.3), rgb("c3d5ee"))
    fir(frame, 0.08 + 0.1 * r[1], 0.66, 0.42 + 0.1 * r[2], rgb("2c5a4c"), snow=True)
    fir(frame, 0.82 + 0.1 * r[3], 0.66, 0.36 + 0.14 * r[4], rgb("2c5a4c"), snow=True)
    frame.fill(
        EVERYWHERE, hills(0.7, 0.09, r[5], 0.9), rgb("f6f9ff"), lambda x, y: (np.float32(0.7) - y) * np.float32(0.35)
    )
    for i in range(9):
        x, y, size = r[6 + i], (i + r[15 + i]) / 9, 0.013 + 0.01 * r[24 + i]
        frame.fill((x - size, y - size, x + size, y + size), circle(x, y, size), WHITE)


def beach(frame: Frame, r: list[float]) -> None:
    """Draw sun, sea, sand and a palm tree."""
    frame.wash(rgb("3f9bea"), rgb("c4e8fb"), 0.0, 0.5)
    glow(rgb("fff3b0"), frame, 0.1 + 0.75 * r[0], 0.13, 0.075, 0.2)
    cloud(frame, r[1], 0.26, 0.16)
    frame.wash(rgb("1766c0"), rgb("39bfd0"), 0.48, 0.68)
    frame.fill((0, 0.45, 1, 0.7), lambda x, y: np.abs(wave(y * 16 + x * 3) - 1) - np.float32(0.12), WHITE, opacity=0.35)
    sand = hills(0.74, 0.06, r[2], 0.8)
    frame.fill(EVERYWHERE, lambda x, y: sand(x, y) - np.float32(0.02), WHITE, opacity=0.9)
    frame.fill(EVERYWHERE, sand, rgb("efd392"), lambda x, y: wave(x * 9 + y * 23) * np.float32(0.05) - np.float32(0.02))
    palm(frame, 0.07 if r[3] < 0.5 else 0.93, 0.08 if r[3] < 0.5 else -0.08)


def palm(frame: Frame, x: float, lean: float) -> None:
    """Draw a palm tree at the edge of the beach."""
    top = x + lean
    frame.fill((x - 0.1, 0.3, x + 0.1, 0.85), line(x, 0.82, top, 0.36, 0.026, 0.016), rgb("7d5530"))
    leaves = [
        line(top, 0.35, top + dx, 0.35 + dy, 0.03, 0.006)
        for dx, dy in ((-0.2, 0.03), (-0.13, -0.12), (0.05, -0.17), (0.16, -0.08), (0.2, 0.07))
    ]
    frame.fill((top - 0.25, 0.1, top + 0.25, 0.5), any_of(leaves), rgb("2e8b45"))


def forest(frame: Frame, r: list[float]) -> None:
    """Draw trunks and firs in green mist, nearer ones darker."""
    frame.wash(rgb("a9cf8e"), rgb("5d9a55"), 0.0, 0.6)
    for depth, color in ((0, rgb("6ba566")), (1, rgb("3f7f4a")), (2, rgb("1f5a35"))):
        for i in range(4 - (depth > 1)):
            x = (i + r[depth * 4 + i]) / 4 if depth < 2 else (0.02, 0.3, 0.97)[i] + 0.1 * (r[8 + i] - 0.5)
            fir(frame, x, 0.64 + 0.11 * depth, 0.5 + 0.13 * depth + 0.1 * r[12 + i], color)
    frame.fill(
        EVERYWHERE, hills(0.82, 0.05, r[16], 1.2), rgb("2f6a2c"), lambda x, y: wave(x * 14 + y * 9) * np.float32(0.06)
    )


def night(frame: Frame, r: list[float]) -> None:
    """Draw a moon with its halo, stars and dark hills."""
    frame.wash(rgb("060a22"), rgb("2c3a7a"), 0.0, 0.85)
    for i in range(14):
        x, y, size = (i + r[i]) / 14, 0.7 * r[14 + i], 0.008 + 0.008 * r[28 + i]
        frame.fill((x - size, y - size, x + size, y + size), circle(x, y, size), rgb("fff8d8"))
    side = 0.13 if r[42] < 0.5 else 0.86
    glow(rgb("fbf3c6"), frame, side, 0.15, 0.085, 0.2)
    frame.fill(
        (side - 0.1, 0.05, side + 0.1, 0.25),
        any_of((circle(side + 0.025, 0.13, 0.022), circle(side - 0.03, 0.18, 0.016))),
        rgb("d9cf98"),
    )
    frame.fill(EVERYWHERE, peaks(0.86, 0.2, r[43], 1.6), rgb("0e1536"))


def brick(frame: Frame, r: list[float]) -> None:
    """Draw a wall of bricks, each row shifted by half a brick."""
    rows, columns = 8, 4

    def mortar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        row = np.floor(y * np.float32(rows) + np.float32(r[0]))
        across = x * np.float32(columns) + row * np.float32(0.5) + np.float32(r[1])
        level = np.abs(wave(y * np.float32(rows) + np.float32(r[0]))) * np.float32(0.5 / rows)
        return np.minimum(level, wave(across) * np.float32(0.5 / columns)) - np.float32(0.011)

    def clay(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        row = np.floor(y * np.float32(rows) + np.float32(r[0]))
        brick_ = np.floor(x * np.float32(columns) + row * np.float32(0.5) + np.float32(r[1]))
        return wave(brick_ * np.float32(0.37) + row * np.float32(0.23)) * np.float32(0.12) - y * np.float32(0.12)

    frame.fill(EVERYWHERE, lambda x, y: -mortar(x, y), rgb("a8482f"), shade=clay)
    frame.fill(EVERYWHERE, mortar, rgb("d9c6b4"), shade=lambda x, y: y * np.float32(-0.15))


def mountains(frame: Frame, r: list[float]) -> None:
    """Draw a sunset behind three ranges, the far ones paler."""
    frame.wash(rgb("6a4fa3"), rgb("ffb56b"), 0.0, 0.62)
    glow(rgb("ffe9a8"), frame, 0.15 + 0.7 * r[0], 0.42, 0.08, 0.3)
    for level, height, color, i in ((0.66, 0.4, "a8719c", 1), (0.78, 0.36, "75497f", 2), (0.92, 0.26, "47305f", 3)):
        frame.fill(
            EVERYWHERE,
            peaks(level, height, r[i], 1.1 + 0.5 * i),
            rgb(color),
            lambda x, y: (y - 0.6) * np.float32(0.25),
        )


def city(frame: Frame, r: list[float]) -> None:
    """Draw houses with lit windows in the evening."""
    frame.wash(rgb("f3a6a0"), rgb("fbe3b5"), 0.0, 0.6)
    for depth, color in ((0, rgb("c08c9a")), (1, rgb("5a5f80"))):
        for i in range(5):
            x, top = i / 5 - 0.02 + 0.04 * r[i + 5 * depth], 0.12 + 0.16 * depth + 0.3 * r[10 + i + 5 * depth]
            house = box(x, top, x + 0.2 - 0.03 * depth, 1.2)
            frame.fill((x, top, x + 0.22, 1.1), house, scaled(color, 0.9 + 0.2 * r[20 + i]))
            if depth:
                frame.fill((x, top, x + 0.2, 1.1), windows(x, top), rgb("ffe27a"))
    frame.wash(rgb("4b4d5c"), rgb("33343f"), 0.93, 1.0)


def windows(left: float, top: float) -> Shape:
    """Return the shape of rows of three windows in a house whose upper left corner is given."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u = np.abs(wave((x - np.float32(left + 0.013)) * np.float32(1 / 0.048)) - 1) * np.float32(0.024)
        v = np.abs(wave((y - np.float32(top + 0.02)) * np.float32(1 / 0.08)) - 1) * np.float32(0.04)
        inside = np.abs(x - np.float32(left + 0.085)) - np.float32(0.072)
        return np.maximum(np.maximum(u - np.float32(0.012), v - np.float32(0.02)), inside)

    return distance


def meadow(frame: Frame, r: list[float]) -> None:
    """Draw green hills, clouds and flowers."""
    frame.wash(rgb("58b2f2"), rgb("d8f1fb"), 0.0, 0.55)
    cloud(frame, 0.2 * r[0] + 0.05, 0.12 + 0.1 * r[1], 0.17)
    cloud(frame, 0.75 + 0.25 * r[2], 0.1 + 0.16 * r[3], 0.2)
    frame.fill(EVERYWHERE, hills(0.58, 0.14, r[4], 0.9), rgb("93c95b"))
    frame.fill(
        EVERYWHERE, hills(0.68, 0.12, r[5], 1.2), rgb("5fae3d"), lambda x, y: (np.float32(0.75) - y) * np.float32(0.5)
    )
    petals = (rgb("ff5d73"), rgb("ffffff"), rgb("ffd93b"), rgb("c774e8"))
    for i in range(12):
        x, y = (i + r[6 + i]) / 12, 0.7 + 0.28 * r[18 + i]
        size = 0.012 + 0.022 * (y - 0.6)
        frame.fill((x - size, y - size, x + size, y + size), circle(x, y, size), petals[i % 4])


def sea(frame: Frame, r: list[float]) -> None:
    """Draw an underwater scene: rays of light, weed, bubbles and a fish."""
    frame.wash(rgb("3fd0d8"), rgb("07336b"), 0.0, 0.95)

    def rays(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.float32(0.05) - wave(x * 2 + y * np.float32(0.6) + np.float32(r[0])) * np.float32(0.1)

    frame.fill((-0.1, -0.1, 1.1, 0.75), rays, rgb("c8fbf4"), soft=0.08, opacity=0.22)
    frame.fill(
        EVERYWHERE, hills(0.92, 0.06, r[1], 1.1), rgb("c9b47c"), lambda x, y: (np.float32(0.85) - y) * np.float32(0.8)
    )
    for i, x in enumerate((0.05, 0.14, 0.87, 0.95)):
        weed(frame, x + 0.04 * (r[2 + i] - 0.5), 0.35 + 0.25 * r[6 + i])
    for i in range(6):
        x, y, size = (0.04 + 0.2 * r[10 + i]) + 0.72 * (i % 2), r[16 + i] * 0.8, 0.014 + 0.016 * r[22 + i]
        bubble = circle(x, y, size)
        frame.fill(
            (x - 0.05, y - 0.05, x + 0.05, y + 0.05),
            lambda u, v, b=bubble: np.abs(b(u, v)) - np.float32(0.005),
            rgb("dffcff"),
        )
    fish(frame, 0.12 if r[28] < 0.5 else 0.86, 0.14 + 0.2 * r[29], mixed(rgb("ff8a1f"), rgb("ffd52e"), r[30]))


def weed(frame: Frame, x: float, top: float) -> None:
    """Draw a swaying blade of weed."""

    def blade(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        sway = (wave(v * np.float32(4.5)) - np.float32(0.5)) * np.float32(0.035)
        return np.maximum(np.abs(u - np.float32(x) - sway) - np.float32(0.017), np.float32(top) - v)

    frame.fill(
        (x - 0.06, top, x + 0.06, 0.95), blade, rgb("1f8f5f"), lambda u, v: (np.float32(0.8) - v) * np.float32(0.4)
    )


def fish(frame: Frame, x: float, y: float, color: Color) -> None:
    """Draw a small fish."""
    tail = polygon((x + 0.03, y), (x + 0.1, y - 0.045), (x + 0.1, y + 0.045))
    frame.fill((x - 0.1, y - 0.1, x + 0.12, y + 0.1), any_of((ellipse(x, y, 0.065, 0.04), tail)), color)
    frame.fill((x - 0.05, y - 0.03, x - 0.02, y + 0.01), circle(x - 0.035, y - 0.01, 0.011), rgb("10131c"))


PLACES = {
    "studio": studio, "snow": snow, "beach": beach, "forest": forest, "night": night,
    "brick": brick, "mountains": mountains, "city": city, "meadow": meadow, "sea": sea,
}  # fmt: skip
RANDOM_VALUES = 48
"""Number of random values, determined by the variant, that a background may use."""
