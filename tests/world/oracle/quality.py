"""How well the oracle reads people nobody trained on."""

from __future__ import annotations

import numpy as np
import torch

from ..chance import generator_of
from ..identity import Identity
from ..people import person, seeds
from ..render import render_batch
from ..scene import Scene, sample_scene
from .network import Oracle
from .questions import QUESTIONS, answers
from .reading import read

Shown = list[tuple[Identity, Scene]]


def held_out(people: int, scene: Scene | None = None) -> Shown:
    """People nobody trained on, all in this scene or each in one at random."""
    numbers = [seed for _, seed in zip(range(people), seeds(held_out=True), strict=False)]
    return [(person(n), scene or sample_scene(generator_of(n ^ 0x0AC1E))) for n in numbers]


def quality(oracle: Oracle, shown: Shown) -> dict[str, float]:
    """Attribute -> share of right answers (categorical) or R2 (continuous), of pictures that show it."""
    reading = read(oracle, torch.from_numpy(render_batch(*zip(*shown, strict=True))).float() / 255)
    true, seen = (np.stack(part) for part in zip(*(answers(*pair) for pair in shown), strict=True))
    found = {}
    for n, attribute in enumerate(QUESTIONS):
        asked, values = seen[:, n], reading[attribute.name].numpy()
        got = values.argmax(1) if attribute.values else values[:, 0]
        found[attribute.name] = _quality(got[asked], true[asked, n], bool(attribute.values))
    return found


def _quality(got: np.ndarray, true: np.ndarray, categorical: bool) -> float:
    if categorical:
        return float((got == true).mean())
    return float(1 - ((got - true) ** 2).mean() / true.var())
