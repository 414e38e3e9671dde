"""Training of the autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..loop import Plan, Training
from ..stream import batch
from .autoencoder import Autoencoder

BATCH = 16
NOISE = 0.02
"""Deviation of what is added to latents in training: what lies closer together than this must look alike."""
PLAN = Plan(steps=4200, rate=5e-3, average=0.998)


def pictures_of(start: int, count: int) -> Tensor:
    """[count, 3, 64, 64] in [0, 1]: examples `start` ... of the stream."""
    pictures, _ = batch(start, count)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, to the right and down."""
    return pictures.diff(dim=3), pictures.diff(dim=2)


def reconstruction_loss(made: Tensor, real: Tensor) -> Tensor:
    """Mean absolute error of colours and of edges: blurred edges cost, where they would cost a colour little."""
    loss = (made - real).abs().mean()
    for ours, theirs in zip(edges(made), edges(real), strict=True):
        loss = loss + (ours - theirs).abs().mean()
    return loss


def train(folder: Path, plan: Plan = PLAN) -> Autoencoder:
    """The trained autoencoder; its state is in `folder`, and an unfinished one there is continued."""
    torch.manual_seed(0)
    autoencoder = Autoencoder()

    def loss_of(step: int) -> Tensor:
        real = pictures_of(step * BATCH, BATCH).contiguous(memory_format=torch.channels_last)
        latents = autoencoder.encode(real)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
        return reconstruction_loss(autoencoder.decode(latents + NOISE * noise), real)

    trained = Training(autoencoder, plan, folder / "autoencoder.safetensors").run(loss_of)
    return trained.eval()
