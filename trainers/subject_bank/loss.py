"""Several subjects in one batch: one forward for all, each sample of it with an adapter of its own.

The loss has a number for each subject, and what is drawn for a step is the same for all of them: a subject's numbers
change as they would alone, whoever is beside it.
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

LEVELS = 5
"""Noise levels of a measurement, quantiles of the distribution trained on: as many forwards, so that the looks at a run
of 100 steps take a fifteenth of its time. Noise is the same with and without a subject's numbers, and few levels tell
these apart."""


@dataclass(frozen=True)
class BankLoss:
    """``w(sigma) mean((x0_hat - x0)^2)`` of each of the subjects on one of its pictures, ``[subjects]``.

    Args:
        objective: the loss, on a model that carries the subjects' adapters, in their order.
        subjects: their pictures, all of one size.
        options: the distributions of noise and levels.
        seed: of every draw.

    Raises:
        ValueError: pictures are of several sizes.
    """

    objective: Objective
    subjects: Sequence[Subject]
    options: TrainingOptions
    seed: int

    def __post_init__(self) -> None:
        sizes = {example.size for subject in self.subjects for example in subject.examples}
        if len(sizes) != 1:
            raise ValueError(f"subjects side by side need latents of one size, not {sorted(sizes)}")

    def __call__(self, batch: int) -> Iterator[Tensor]:
        """The one term of batch number ``batch``."""
        generator = generator_for(self.seed, _DRAWS, batch)
        order = generator_for(self.seed, _ORDER).initial_seed()
        chosen = [Batches(subject.examples, 1, order)[batch][0].variant(0) for subject in self.subjects]
        sigma = self.options.noise_levels.sample(self.objective.denoiser.sigmas, 1, generator)
        yield self.objective(self._draw(chosen, sigma, generator, self.options.noise_offset))

    @torch.no_grad()
    def measured(self) -> Tensor:
        """The mean over fixed noise and fixed levels, on each subject's first picture ``[subjects]``, on the CPU."""
        first = [subject.examples[0].variant(0) for subject in self.subjects]
        cond = self.objective.condition(first)
        objective = replace(self.objective, condition=lambda _: cond)
        generator, losses = generator_for(self.seed, _MEASURE), []
        for level in self.options.noise_levels.spread(objective.denoiser.sigmas, LEVELS):
            losses.append(objective(self._draw(first, level.view(1), generator)).float().cpu())
        return torch.stack(losses).mean(0)

    def _draw(
        self, examples: Sequence[Example], sigma: Tensor, generator: torch.Generator, offset: float = 0.0
    ) -> Draw:
        """The same noise and level for all."""
        noise, count = standard_noise((1, *examples[0].size), generator, offset), len(examples)
        return Draw(examples, sigma.expand(count), noise.expand(count, *noise.shape[1:]))
