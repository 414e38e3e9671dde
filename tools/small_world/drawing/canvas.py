"""Paint shapes given by their signed distances on an image: smooth edges without supersampling.

Only + - * /, square roots, floors and comparisons of float32 arrays are used: IEEE 754 rounds those alike everywhere,
so an image has the same bytes on every machine. Sines, powers, sums and matrix products would differ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .palette import WHITE, Color

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(x [1, w], y [h, 1]) -> signed distance to the outline [h, w], negative inside, in the frame's units."""
Box = tuple[float, float, float, float]


class Frame:
    """Define the coordinates of a canvas, and draw on it."""

    def __init__(
        self, pixels: np.ndarray, side: float, center: tuple[float, float], unit: float, tint: Color = WHITE
    ) -> None:
        """Create the coordinates of a canvas.

        Args:
            pixels: canvas, [3, n, n].
            side: side of one pixel, in sides of the image.
            center: position of the origin, in sides of the image.
            unit: length of one unit, in sides of the image.
            tint: color by which each filled color is multiplied.
        """
        cells = (np.arange(pixels.shape[1], dtype=np.float32) + np.float32(0.5)) * np.float32(side)
        self.pixels, self.grain, self.tint = pixels, side / unit, np.array(tint, np.float32)
        self.x = ((cells - np.float32(center[0])) * np.float32(1 / unit))[None, :]
        self.y = ((cells - np.float32(center[1])) * np.float32(1 / unit))[:, None]
        self.left, self.top = float(self.x[0, 0]), float(self.y[0, 0])

    def wash(self, top: Color, bottom: Color, start: float = 0.0, end: float = 1.0) -> None:
        """Fill everything below `start` with a gradient from `top` at `start` to `bottom` at `end` and below."""
        rows = self.y[:, 0] >= start
        share = np.minimum((self.y[rows] - np.float32(start)) * np.float32(1 / (end - start)), 1)
        one, other = (np.array(c, np.float32)[:, None, None] for c in (top, bottom))
        self.pixels[:, rows] = one + (other - one) * share

    def window(self, box: Box) -> tuple[slice, slice]:
        """Return the rows and columns within (left, top, right, bottom)."""
        last = self.pixels.shape[1]
        x0, y0 = (int((low - first) / self.grain) - 1 for low, first in ((box[0], self.left), (box[1], self.top)))
        x1, y1 = (int((high - first) / self.grain) + 3 for high, first in ((box[2], self.left), (box[3], self.top)))
        return slice(max(y0, 0), min(max(y1, 0), last)), slice(max(x0, 0), min(max(x1, 0), last))

    def fill(
        self,
        box: Box,
        shape: Shape,
        color: Color,
        shade: Shape | None = None,
        soft: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        """Paint `shape`, which lies within `box`, over the canvas.

        `shade` (x, y) -> [h, w] is added to all three of the color's channels; `soft` units of blur make a shadow or
        a glow of it. alpha = opacity * clip(1/2 - distance / (grain + soft), 0, 1).
        """
        rows, columns = self.window(box)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        x, y = self.x[:, columns], self.y[rows]
        alpha = shape(x, y) * np.float32(-1 / (self.grain + soft))
        alpha += np.float32(0.5)
        np.maximum(alpha, 0, out=alpha)
        np.minimum(alpha, 1, out=alpha)
        if opacity != 1.0:
            alpha *= np.float32(opacity)
        ground = self.pixels[:, rows, columns]
        paint = (np.array(color, np.float32) * self.tint)[:, None, None]
        difference = (paint if shade is None else paint + shade(x, y)) - ground
        difference *= alpha
        ground += difference
