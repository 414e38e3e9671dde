"""Define the pretraining examples: image n and its caption depend on n alone, so a resumed run needs no state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..drawing.render import SIZE, render
from ..random_draws import generator_of, mix
from ..scene.captions import sample_caption
from ..scene.identity import Thing
from ..scene.people import is_held_out, person, vase
from ..scene.scene import Scene, sample_scene

VASE_EVERY = 5
"""One image in so many shows a vase."""


@dataclass(frozen=True)
class Example:
    """Hold a thing in a scene, and its caption."""

    thing: Thing
    scene: Scene
    caption: str

    def image(self, size: int = SIZE) -> np.ndarray:
        """Return the image, [size, size, 3] uint8."""
        return render(self.thing, self.scene, size)


def example(number: int) -> Example:
    """Return example `number` of the stream, which contains no held-out people."""
    seed = number
    while is_held_out(seed):
        seed += 1
    thing = vase(seed) if number % VASE_EVERY == 0 else person(seed)
    generator = generator_of(
        mix(number) ^ 0x5CE7E
    )  # independent of the person's generator, so that scene and person are independent
    scene = sample_scene(generator)
    return Example(thing, scene, sample_caption(thing, scene, generator))
