"""How well the oracle reads people nobody trained on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..chance import generator_of
from ..people import person, seeds
from ..render import render
from ..scene import sample_scene
from .network import Oracle, parts
from .questions import QUESTIONS, answers

AT_ONCE = 100


@torch.inference_mode()
def quality(oracle: Oracle, people: int) -> dict[str, float]:
    """Attribute -> share of right answers (categorical) or R2 (continuous), on held-out people in random scenes."""
    numbers = [seed for _, seed in zip(range(people), seeds(held_out=True), strict=False)]
    got, true, shown = (np.concatenate(part) for part in zip(*_readings(oracle, numbers), strict=True))
    found = {}
    for n, attribute in enumerate(QUESTIONS):
        asked = shown[:, n]
        found[attribute.name] = _quality(got[asked, n], true[asked, n], bool(attribute.values))
    return found


def _quality(got: np.ndarray, true: np.ndarray, categorical: bool) -> float:
    if categorical:
        return float((got == true).mean())
    return float(1 - ((got - true) ** 2).mean() / true.var())


def _readings(oracle: Oracle, numbers: list[int]) -> Iterator[tuple[np.ndarray, ...]]:
    for start in range(0, len(numbers), AT_ONCE):
        shown = [(person(n), sample_scene(generator_of(n ^ 0x0AC1E))) for n in numbers[start : start + AT_ONCE]]
        pictures = torch.from_numpy(np.stack([render(*pair) for pair in shown])).permute(0, 3, 1, 2).float() / 255
        read = parts(QUESTIONS, oracle(pictures)).values()
        got = torch.stack([p.argmax(1).float() if p.shape[1] > 1 else p[:, 0].clamp(0, 1) for p in read], 1)
        true, seen = zip(*(answers(*pair) for pair in shown), strict=True)
        yield got.numpy(), np.stack(true), np.stack(seen)
