"""The per-subject denoising loss of a batch: one forward for all subjects, each sample with its own adapter.

The loss has one value per subject, and the draws of a step (noise, noise level) are the same for all of them. A
subject's parameters therefore change as they would if it trained alone, whichever subjects share its batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import TrainingOptions
from ..data.dataset import Batches, Example, Subject
from ..diffusion.noise_levels import standard_noise
from ..diffusion.objective import Draw, Objective
from ..engine.rng import generator_for

_ORDER, _DRAWS, _MEASURE = range(3)

MEASURED_LEVELS = 5
"""Noise levels of a measurement: quantiles of the training distribution, one forward each, which takes a fifteenth of
the time of a run of 100 steps. Noise is the same with and without a subject's adapter, and few levels tell the two
apart."""


@dataclass(frozen=True, kw_only=True)
class BankLoss:
    """``w(sigma) mean((x0_hat - x0)^2)`` of each subject on one of its images, ``[subjects]``.

    Args:
        objective: the denoising loss of a model that carries the subjects' adapters, in the order of ``subjects``.
        subjects: the subjects' examples, all of one latent size.
        options: the distributions of noise and noise levels.
        seed: of every draw.

    Raises:
        ValueError: the latents are of several sizes.
    """

    objective: Objective
    subjects: Sequence[Subject]
    options: TrainingOptions
    seed: int

    def __post_init__(self) -> None:
        sizes = {example.size for subject in self.subjects for example in subject.examples}
        if len(sizes) != 1:
            raise ValueError(f"subjects of one batch need latents of one size, not {sorted(sizes)}")

    def __call__(self, batch: int) -> Iterator[Tensor]:
        """Yield the only loss term ``[subjects]`` of batch ``batch``."""
        generator = generator_for(self.seed, _DRAWS, batch)
        order = generator_for(self.seed, _ORDER).initial_seed()
        chosen = [Batches(subject.examples, 1, order)[batch][0].variant(0) for subject in self.subjects]
        sigma = self.options.noise_levels.sample(self.objective.denoiser.sigmas, 1, generator)
        yield self.objective(self._draw(chosen, sigma, generator, self.options.noise_offset))

    @torch.no_grad()
    def measured(self) -> Tensor:
        """Return the mean loss over fixed noise and noise levels on each subject's first image, ``[subjects]``, CPU."""
        first = [subject.examples[0].variant(0) for subject in self.subjects]
        cond = self.objective.condition(first)
        objective = replace(self.objective, condition=lambda _: cond)
        generator, losses = generator_for(self.seed, _MEASURE), []
        for sigma in self.options.noise_levels.spread(objective.denoiser.sigmas, MEASURED_LEVELS):
            losses.append(objective(self._draw(first, sigma.view(1), generator)).float().cpu())
        return torch.stack(losses).mean(0)

    def _draw(
        self, examples: Sequence[Example], sigma: Tensor, generator: torch.Generator, offset: float = 0.0
    ) -> Draw:
        """Return a draw with the same noise and noise level for every example."""
        noise, count = standard_noise((1, *examples[0].size), generator, offset), len(examples)
        return Draw(examples, sigma.expand(count), noise.expand(count, *noise.shape[1:]))
