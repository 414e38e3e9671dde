"""Measure how well the oracle reads held-out people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..drawing.render import render_batch
from ..random_draws import generator_of
from ..scene.identity import Identity
from ..scene.people import person, seeds
from ..scene.scene import Scene, sample_scene
from .network import Oracle
from .questions import QUESTIONS, answers
from .reading import read

Shown = list[tuple[Identity, Scene]]


def held_out(people: int) -> Shown:
    """Return held-out people who are in no reported figure, each in a random scene."""
    numbers = [seed for _, seed in zip(range(people), seeds(held_out=True, start=1 << 21), strict=False)]
    return [(person(n), sample_scene(generator_of(n ^ 0x0AC1E))) for n in numbers]


def quality(oracle: Oracle, shown: Shown, views: Sequence[Scene] = ()) -> dict[str, float]:
    """Return attribute -> accuracy (categorical) or R2 (continuous), where the first image shows it.

    A reading is that of one image of each person, or the mean over `views`, as for reference images.
    """
    pairs = [(person, view) for person, scene in shown for view in views or (scene,)]
    each = max(1, len(views))
    reading = read(oracle, torch.from_numpy(render_batch(*zip(*pairs, strict=True))).float() / 255)
    true, seen = (np.stack(part) for part in zip(*(answers(*pair) for pair in pairs[::each]), strict=True))
    found = {}
    for n, attribute in enumerate(QUESTIONS):
        values = reading[attribute.name].unflatten(0, (-1, each)).mean(1).numpy()
        got, asked = values.argmax(1) if attribute.values else values[:, 0], seen[:, n]
        found[attribute.name] = _quality(got[asked], true[asked, n], bool(attribute.values))
    return found


def _quality(got: np.ndarray, true: np.ndarray, categorical: bool) -> float:
    if categorical:
        return float((got == true).mean())
    return float(1 - ((got - true) ** 2).mean() / max(true.var(), 1e-12))
