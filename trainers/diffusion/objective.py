"""Examples with noise of a certain level, and their losses one by one: what every training of a denoiser is made of."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...models.backbone.denoiser import Denoiser
from ..data.dataset import Example
from .losses import DenoisingLoss, Teacher, Weighting

Condition = Callable[[Sequence[Example]], Any]
"""Examples of a batch -> what the denoiser takes for their prompts."""
Around = Callable[[torch.device], AbstractContextManager[None]]


@dataclass(frozen=True)
class Draw:
    """What a loss term is computed on: one variant of each example, with its noise and level.

    Args:
        name: of a draw that a run makes again and again, for what is recorded of it.
        start: which of the named draw's samples is the first of these.
    """

    examples: Sequence[Example]
    sigma: Tensor
    noise: Tensor
    name: str = ""
    start: int = 0

    @property
    def of_teacher(self) -> "Draw":
        """The same under the name of what the teacher makes of it."""
        return replace(self, name=f"{self.name}.teacher")

    def micro_batches(self, count: int) -> Iterator["Draw"]:
        """The same in up to ``count`` parts."""
        size = -(-len(self.examples) // count)
        for start in range(0, len(self.examples), size):
            part = slice(start, start + size)
            yield Draw(self.examples[part], self.sigma[part], self.noise[part], self.name, self.start + start)


def _anywhere(_device: torch.device) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Objective:
    """``w(sigma) mean((x0_hat - x0)^2)`` of each sample of a draw.

    Args:
        denoiser: the model, adapters attached.
        condition: gives a batch's conditioning.
        to_model: a latent as the VAE gave it -> model space, on the training device.
        weighting: w(sigma), see :mod:`.losses`.
    """

    denoiser: Denoiser
    condition: Condition
    to_model: Callable[[Tensor], Tensor]
    weighting: Weighting

    def __call__(self, draw: Draw, teacher: Teacher | None = None, around: Around = _anywhere) -> Tensor:
        """Losses ``[B]``.

        Args:
            teacher: its estimate takes the place of x0.
            around: given the device, the block in which the network runs.
        """
        clean, mask = self._clean(draw.examples)
        cond, noise = self.condition(draw.examples), draw.noise.to(clean)
        loss = DenoisingLoss(self.denoiser, self.weighting)
        with around(clean.device):
            return loss(clean, cond, draw.sigma.to(clean.device), noise, mask, teacher)

    def estimate(self, draw: Draw) -> Tensor:
        """Return x0_hat ``[B, C, h, w]`` of the draw's noisy latents; no loss is computed."""
        clean = self._latents(draw.examples)
        sigma = draw.sigma.to(clean.device)
        noisy = self.denoiser.add_noise(clean, draw.noise.to(clean), sigma)
        return self.denoiser(noisy, sigma, self.condition(draw.examples))

    def _latents(self, examples: Sequence[Example]) -> Tensor:
        """Return the clean latents in model space, on the training device."""
        return self.to_model(torch.cat([example.latents for example in examples]))

    def _clean(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor | None]:
        """Return latents in model space, and masks if any example has one."""
        clean = self._latents(examples)
        if all(example.mask is None for example in examples):
            return clean, None
        masks = [torch.ones_like(e.latents[:, :1]) if e.mask is None else e.mask for e in examples]
        return clean, torch.cat(masks).to(clean)
