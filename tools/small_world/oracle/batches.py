"""Make training batches for networks that read images; a separate process draws the next batch meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from ..pretraining.stream import example
from .questions import answers

Batch = tuple[Tensor, Tensor, Tensor]
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]


def drawn(start: int, count: int) -> Drawn:
    """Return images [count, 64, 64, 3] uint8, true answers and the mask of those shown [count, questions]."""
    examples = [example(number) for number in range(start, start + count)]
    true, shown = zip(*(answers(e.thing, e.scene) for e in examples), strict=True)
    return np.stack([e.image() for e in examples]), np.stack(true), np.stack(shown)


def ahead(first: int, count: int) -> Callable[[int], Batch]:
    """Return `batch_at(step)`: images [count, 3, 64, 64] in [0, 1], answers and mask; the next batch is drawn ahead."""
    painter = ProcessPoolExecutor(1, get_context("fork"))  # other start methods would import ComfyUI's `tests`
    waiting: dict[int, Future[Drawn]] = {}

    def batch_at(step: int) -> Batch:
        for number in (step, step + 1):
            if number not in waiting:
                waiting[number] = painter.submit(drawn, first + number * count, count)
        images, true, shown = map(torch.from_numpy, waiting.pop(step).result())
        return images.movedim(-1, 1).float() / 255, true, shown

    return batch_at
