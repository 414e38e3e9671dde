"""Define scenes: background, style, expression, framing and placement, which a caption may name."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..random_draws import uniforms
from .attributes import Attribute, Table

SCENE_TABLE = Table(
    (
        Attribute(
            "background", "shape",
            ("studio", "snow", "beach", "forest", "night", "brick", "mountains", "city", "meadow", "sea"),
        ),
        Attribute("style", "shape", ("photo", "sketch", "pixel", "inverted", "sepia", "comic"), (3, 1, 1, 1, 1, 1)),
        Attribute("expression", "detail", ("neutral", "smiling", "surprised", "sad", "winking")),
        Attribute("framing", "shape", ("portrait", "close", "far"), (2, 1, 1)),
        Attribute("place", "shape", ("center", "left", "right"), (2, 1, 1)),
        Attribute("shift_x", "shape"),
        Attribute("shift_y", "shape"),
    )
)  # fmt: skip

KEEPS = {
    "photo": frozenset({"hue", "tone", "shape", "detail"}),
    "inverted": frozenset({"hue", "tone", "shape", "detail"}),
    "comic": frozenset({"hue", "tone", "shape", "detail"}),
    "sepia": frozenset({"tone", "shape", "detail"}),
    "sketch": frozenset({"shape", "detail"}),
    "pixel": frozenset({"hue", "tone", "shape"}),
}
"""Style -> carriers (see attributes.CARRIERS) that it keeps."""


@dataclass(frozen=True)
class Scene:
    """Describe a scene; SCENE_TABLE has the values, and `variant` moves trees, stars or clouds of the background."""

    background: str = "studio"
    style: str = "photo"
    expression: str = "neutral"
    framing: str = "portrait"
    place: str = "center"
    shift_x: float = 0.5
    shift_y: float = 0.5
    variant: int = 0

    def __post_init__(self) -> None:
        SCENE_TABLE.check(self)
        if self.variant < 0:
            raise ValueError(f"variant is {self.variant}, expected an integer from 0")

    @property
    def keeps(self) -> frozenset[str]:
        """Return the carriers that this scene's style keeps."""
        return KEEPS[self.style]


def sample_scene(generator: torch.Generator) -> Scene:
    """Return a random scene."""
    draws = uniforms(generator, len(SCENE_TABLE) + 1)
    return Scene(**SCENE_TABLE.draw(draws), variant=int(next(draws) * (1 << 31)))
