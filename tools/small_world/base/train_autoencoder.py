"""Train the autoencoder."""

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
"""Weights of pixels of the head and the face: most pixels show backgrounds, and without weights faces stay blurred."""
NOISE = 0.02
"""Standard deviation of the noise added to latents in training, so that nearby latents decode to similar images."""
PLAN = Plan(steps=10_800, rate=5e-3, average=0.998)


def images_of(start: int, count: int) -> tuple[Tensor, Tensor]:
    """Return images from `start` on, [count, 3, 64, 64] in [0, 1], and their `importance`, [count, 1, 64, 64]."""
    examples = [example(number) for number in range(start, start + count)]
    images = torch.from_numpy(np.stack([e.image() for e in examples])).permute(0, 3, 1, 2).float() / 255
    return images, torch.stack([importance(e.scene) for e in examples])


def importance(scene: Scene) -> Tensor:
    """Return the pixel weights, [1, 64, 64]: HEAD within the head, FACE within the face, 1 in the background."""
    x, y = center(scene)
    line = (torch.arange(SIZE) + 0.5) / SIZE
    across, down = (line - x) / UNITS[scene.framing], (line[:, None] - y) / UNITS[scene.framing]
    weight = torch.ones(SIZE, SIZE)
    weight[(across / 1.2) ** 2 + (down / 1.5) ** 2 < 1] = HEAD
    weight[(across / 0.8) ** 2 + down**2 < 1] = FACE
    return weight[None]


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of horizontally and vertically adjacent pixels."""
    return images.diff(dim=3), images.diff(dim=2)


def reconstruction_loss(made: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean absolute error of colors and of edges; the latter penalizes blur."""
    loss = ((made - real).abs() * weight).mean()
    right, down = (m - r for m, r in zip(edges(made), edges(real), strict=True))
    loss = loss + (right.abs() * weight[..., 1:]).mean() + (down.abs() * weight[:, :, 1:]).mean()
    return loss / weight.mean()


def train(folder: Path, plan: Plan = PLAN) -> Autoencoder:
    """Train the autoencoder; its state is in `folder`, and an unfinished training there is resumed."""
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
