"""Training of the autoencoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..drawing.render import SIZE, UNITS, center
from ..pretraining.loop import Plan, Training
from ..pretraining.stream import example
from ..scene.scene import Scene
from .autoencoder import Autoencoder

BATCH = 32
HEAD, FACE = 2.0, 8.0
"""Most pixels show places, which are soon learned: without weights they come out sharp, and faces blurred."""
NOISE = 0.02
"""Deviation of what is added to latents in training: what lies closer together than this must look alike."""
PLAN = Plan(steps=10_800, rate=5e-3, average=0.998)


def images_of(start: int, count: int) -> tuple[Tensor, Tensor]:
    """([count, 3, 64, 64] in [0, 1], [count, 1, 64, 64]): examples `start` ... and their `importance`."""
    examples = [example(number) for number in range(start, start + count)]
    images = torch.from_numpy(np.stack([e.image() for e in examples])).permute(0, 3, 1, 2).float() / 255
    return images, torch.stack([importance(e.scene) for e in examples])


def importance(scene: Scene) -> Tensor:
    """[1, 64, 64]: HEAD times as much within the head as in the background, FACE times within the face."""
    x, y = center(scene)
    line = (torch.arange(SIZE) + 0.5) / SIZE
    across, down = (line - x) / UNITS[scene.framing], (line[:, None] - y) / UNITS[scene.framing]
    weight = torch.ones(SIZE, SIZE)
    weight[(across / 1.2) ** 2 + (down / 1.5) ** 2 < 1] = HEAD
    weight[(across / 0.8) ** 2 + down**2 < 1] = FACE
    return weight[None]


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighboring pixels, to the right and down."""
    return images.diff(dim=3), images.diff(dim=2)


def reconstruction_loss(made: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean absolute error of colors and of edges: a blurred edge costs, where it would cost color little."""
    loss = ((made - real).abs() * weight).mean()
    right, down = (m - r for m, r in zip(edges(made), edges(real), strict=True))
    loss = loss + (right.abs() * weight[..., 1:]).mean() + (down.abs() * weight[:, :, 1:]).mean()
    return loss / weight.mean()


def train(folder: Path, plan: Plan = PLAN) -> Autoencoder:
    """The trained autoencoder; its state is in `folder`, and an unfinished one there is continued."""
    torch.manual_seed(0)
    autoencoder = Autoencoder()

    def loss_of(step: int) -> Tensor:
        real, weight = images_of(step * BATCH, BATCH)
        real = real.contiguous(memory_format=torch.channels_last)
        latents = autoencoder.encode(real)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
        return reconstruction_loss(autoencoder.decode(latents + NOISE * noise), real, weight)

    trained = Training(autoencoder, plan, folder / "autoencoder.safetensors").run(loss_of)
    return trained.eval()
