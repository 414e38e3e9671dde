"""The denoising objective of a training step: examples with noise of drawn levels, and their losses one by one."""

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
"""Examples of a batch -> the denoiser's conditioning for their prompts."""
NetworkContext = Callable[[torch.device], AbstractContextManager[None]]
"""Device -> the context manager within which the network runs."""


@dataclass(frozen=True)
class Draw:
    """The samples of a loss term: one variant of each example, with its noise and noise level.

    Args:
        examples: ``B`` examples.
        sigma: noise levels ``[B]``.
        noise: standard normal, like the examples' latents ``[B, C, h, w]``.
        name: identifies a draw that a run repeats, for the activations cached of it.
        start: index of the first of these samples in the named draw.
    """

    examples: Sequence[Example]
    sigma: Tensor
    noise: Tensor
    name: str = ""
    start: int = 0

    @property
    def of_teacher(self) -> "Draw":
        """The same samples under the name of the teacher's activations."""
        return replace(self, name=f"{self.name}.teacher")

    def micro_batches(self, count: int) -> Iterator["Draw"]:
        """Split the samples into up to ``count`` parts of equal size, but for the last."""
        size = -(-len(self.examples) // count)
        for start in range(0, len(self.examples), size):
            part = slice(start, start + size)
            yield Draw(self.examples[part], self.sigma[part], self.noise[part], self.name, self.start + start)


def _no_context(_device: torch.device) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``w(sigma) mean((x0_hat - x0)^2)`` of each sample of a draw.

    Args:
        denoiser: the model, adapters attached.
        condition: returns a batch's conditioning.
        to_model: latents as the VAE encoded them -> model space, on the training device.
        weighting: w(sigma), see :mod:`.losses`.
    """

    denoiser: Denoiser
    condition: Condition
    to_model: Callable[[Tensor], Tensor]
    weighting: Weighting

    def __call__(self, draw: Draw, teacher: Teacher | None = None, context: NetworkContext = _no_context) -> Tensor:
        """Return the losses ``[B]``.

        Args:
            draw: the samples.
            teacher: its estimate replaces x0 as the target.
            context: given the device, returns the context manager within which the network runs.
        """
        clean, mask = self._clean(draw.examples)
        cond, noise = self.condition(draw.examples), draw.noise.to(clean)
        loss = DenoisingLoss(denoiser=self.denoiser, weighting=self.weighting)
        with context(clean.device):
            return loss(clean, cond, draw.sigma.to(clean.device), noise, mask=mask, teacher=teacher)

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
