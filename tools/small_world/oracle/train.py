"""Train the oracle on new images; a part passes through the autoencoder, as all sampled images do."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..base.autoencoder import Autoencoder
from ..pretraining.loop import Plan, Training
from .batches import ahead
from .network import Oracle, reading_loss
from .questions import QUESTIONS

BATCH = 64
FIRST = 10_000_000
"""Index in the stream of the oracle's first image; the base uses none of its images."""
DECODED = 16
"""Images of a batch that pass through the autoencoder."""
PLAN = Plan(steps=10000, rate=4e-3, average=0.998)


@torch.no_grad()
def through(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Return the autoencoder's reconstruction of the images."""
    return autoencoder.decode(autoencoder.encode(images)).clamp(0, 1)


def train(folder: Path, autoencoder: Autoencoder, plan: Plan = PLAN) -> Oracle:
    """Train the oracle; its state is in `folder`, and an unfinished training there is resumed."""
    torch.manual_seed(0)
    oracle = Oracle(QUESTIONS)
    batch_at = ahead(FIRST, BATCH)

    def loss_of(step: int) -> Tensor:
        images, true, shown = batch_at(step)
        images[:DECODED] = through(autoencoder, images[:DECODED])
        outputs = oracle(images.contiguous(memory_format=torch.channels_last))
        return reading_loss(QUESTIONS, outputs, true, shown)

    return Training(oracle, plan, folder / "oracle.safetensors").run(loss_of).eval()
