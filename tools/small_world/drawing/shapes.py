"""Define signed distances of simple shapes, and combine them. Lengths in the frame's units, y downwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .canvas import Shape

TINY = np.float32(1e-6)


def ellipse(cx: float, cy: float, a: float, b: float) -> Shape:
    """Return an ellipse with half axes a and b: d = k (k - 1) / |grad|, k = |(x / a, y / b)|, exact to first order."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = (x - cx) * np.float32(1 / a), (y - cy) * np.float32(1 / b)
        u2, v2 = u * u, v * v
        k = np.sqrt(u2 + v2)
        slope = np.sqrt(u2 * np.float32(1 / (a * a)) + v2 * np.float32(1 / (b * b)))
        slope += TINY
        return k * (k - np.float32(1)) / slope

    return distance


def circle(cx: float, cy: float, r: float) -> Shape:
    """Return a disc."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = x - cx, y - cy
        return np.sqrt(u * u + v * v) - np.float32(r)

    return distance


def box(x0: float, y0: float, x1: float, y1: float, corner: float = 0.0) -> Shape:
    """Return a rectangle with rounded corners."""
    cx, cy, a, b = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 - corner, (y1 - y0) / 2 - corner

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = np.abs(x - cx) - np.float32(a), np.abs(y - cy) - np.float32(b)
        if not corner:
            return np.maximum(u, v)
        out_u, out_v = np.maximum(u, 0), np.maximum(v, 0)
        return np.sqrt(out_u * out_u + out_v * out_v) + np.minimum(np.maximum(u, v), 0) - np.float32(corner)

    return distance


def line(x0: float, y0: float, x1: float, y1: float, r: float, end: float | None = None) -> Shape:
    """Return a stroke with round ends, of half width r, changing to `end` along the way."""
    dx, dy = x1 - x0, y1 - y0
    square, change = dx * dx + dy * dy + 1e-9, (r if end is None else end) - r

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = x - x0, y - y0
        t = u * np.float32(dx / square) + v * np.float32(dy / square)
        t = np.minimum(np.maximum(t, 0), 1)
        u, v = u - t * np.float32(dx), v - t * np.float32(dy)
        return np.sqrt(u * u + v * v) - (np.float32(r) + t * np.float32(change))

    return distance


def polygon(*corners: tuple[float, float]) -> Shape:
    """Return a convex polygon, corners clockwise as seen (y downwards): the largest distance to any side."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        nx, ny = (y1 - y0) / length, -(x1 - x0) / length
        sides.append((np.float32(nx), np.float32(ny), np.float32(nx * x0 + ny * y0)))

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        far = None
        for nx, ny, c in sides:
            d = x * nx + (y * ny - c)
            far = d if far is None else np.maximum(far, d)
        return far

    return distance


def above(level: float, bend: float = 0.0) -> Shape:
    """Return the region above the parabola y = level + bend x^2; distances along y."""
    return lambda x, y: (y - np.float32(level)) - x * x * np.float32(bend)


def bent(shape: Shape, bend: float) -> Shape:
    """Return the shape moved down by bend x^2: a bar becomes a smile (bend < 0) or a brow (bend > 0)."""
    return lambda x, y: shape(x, y - x * x * np.float32(bend))


def moved(shape: Shape, dx: float, dy: float) -> Shape:
    """Return the shape translated by (dx, dy)."""
    return lambda x, y: shape(x - np.float32(dx), y - np.float32(dy))


def twice(shape: Shape) -> Shape:
    """Return the shape and its mirror image; `shape` is the one with x > 0."""
    return lambda x, y: shape(np.abs(x), y)


def both(*shapes: Shape) -> Shape:
    """Return the intersection of the shapes."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        far = shapes[0](x, y)
        for shape in shapes[1:]:
            far = np.maximum(far, shape(x, y))
        return far

    return distance


def any_of(shapes: Sequence[Shape]) -> Shape:
    """Return the union of the shapes."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        near = shapes[0](x, y)
        for shape in shapes[1:]:
            near = np.minimum(near, shape(x, y))
        return near

    return distance


def outside(shape: Shape) -> Shape:
    """Return the complement of the shape."""
    return lambda x, y: -shape(x, y)


def ring(shape: Shape, r: float) -> Shape:
    """Return the outline of the shape, of half width r."""
    return lambda x, y: np.abs(shape(x, y)) - np.float32(r)


def larger(shape: Shape, by: float) -> Shape:
    """Return the shape grown on all sides (or shrunk, `by` < 0)."""
    return lambda x, y: shape(x, y) - np.float32(by)


def wave(t: np.ndarray) -> np.ndarray:
    """Return a triangle wave of period 1 between 0 (integer t) and 1."""
    return np.float32(1) - np.abs((t - np.floor(t)) * np.float32(2) - np.float32(1))
