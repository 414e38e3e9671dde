"""Training of the oracle on fresh images; a part went through the autoencoder, as all that is sampled has."""

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
"""Number in the stream from which the oracle's images are taken: none of the base's."""
DECODED = 16
"""Images of a batch that went through the autoencoder."""
PLAN = Plan(steps=10000, rate=4e-3, average=0.998)


@torch.no_grad()
def through(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """What the autoencoder makes of them."""
    return autoencoder.decode(autoencoder.encode(images)).clamp(0, 1)


def train(folder: Path, autoencoder: Autoencoder, plan: Plan = PLAN) -> Oracle:
    """The trained oracle; its state is in `folder`, and an unfinished one there is continued."""
    torch.manual_seed(0)
    oracle = Oracle(QUESTIONS)
    batch_at = ahead(FIRST, BATCH)

    def loss_of(step: int) -> Tensor:
        images, true, shown = batch_at(step)
        images[:DECODED] = through(autoencoder, images[:DECODED])
        outputs = oracle(images.contiguous(memory_format=torch.channels_last))
        return reading_loss(QUESTIONS, outputs, true, shown)

    return Training(oracle, plan, folder / "oracle.safetensors").run(loss_of).eval()
