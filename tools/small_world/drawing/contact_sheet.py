"""Write a contact sheet of images: `python -m tools.small_world.drawing.contact_sheet OUT.png [seed]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..random_draws import generator_of
from ..scene.identity import sample_identity, sample_vase
from ..scene.scene import Scene, sample_scene
from .render import SIZE, render

SHOWN = (
    Scene(), Scene("snow", expression="smiling"), Scene("beach", expression="surprised"), Scene("forest"),
    Scene("night", expression="smiling"), Scene("brick", expression="winking"), Scene("mountains", place="left"),
    Scene("city", framing="close"), Scene("meadow", framing="far"), Scene("sea", expression="sad"),
    Scene("snow", "sketch", "smiling"), Scene("city", "sketch", place="right"), Scene("beach", "sepia", "smiling"),
    Scene("forest", "comic"), Scene("meadow", "inverted"), Scene("beach", "pixel", "smiling"),
)  # fmt: skip
"""Scenes that cover every background, style and expression."""


def tiled(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return images of one size as one array ``[rows * size, columns * size, 3]`` uint8."""
    return np.concatenate([np.concatenate(list(row), 1) for row in rows])


def people_in_scenes(seed: int = 1, people: int = 4, size: int = SIZE) -> np.ndarray:
    """Return a grid with one person per row, in the scenes of SHOWN."""
    generator = generator_of(seed)
    return tiled([[render(p, s, size) for s in SHOWN] for p in (sample_identity(generator) for _ in range(people))])


def different_people(seed: int = 1, rows: int = 4, columns: int = 16, size: int = SIZE) -> np.ndarray:
    """Return a grid of different people in different scenes; the last row shows vases."""
    generator = generator_of(seed)
    samplers = [sample_identity] * (rows - 1) + [sample_vase]
    return tiled(
        [[render(draw(generator), sample_scene(generator), size) for _ in range(columns)] for draw in samplers]
    )


if __name__ == "__main__":
    at = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    Image.fromarray(np.concatenate((different_people(at), people_in_scenes(at)))).save(sys.argv[1], optimize=True)
