"""The validation loss: fixed noise and fixed noise levels, so that it changes only as the model does."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.dataset import Example
from ..diffusion.noise_levels import NoiseLevels, standard_noise
from ..diffusion.objective import Draw, Objective
from ..engine.rng import generator_for

_STREAM = 4
"""Number of the random stream of the noise; the streams before it are those of the training draws."""

VALIDATION_LEVELS = 8
"""Noise levels of a validation: quantiles of the distribution trained on."""
DIVERGENCE_LEVELS = 4
"""Noise levels of a divergence check, which then takes about the time of two steps."""
MAX_EXAMPLES = 4
"""Images of a validation at most; 32 forwards are enough for a curve."""


@dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """Compute the mean loss over fixed noise and fixed noise levels, with every block of the network.

    Args:
        objective: the per-sample loss on the model, adapter attached.
        noise_levels: the distribution whose quantiles are the noise levels.
        seed: of the noise.
    """

    objective: Objective
    noise_levels: NoiseLevels
    seed: int

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example], levels: int | None = None) -> float:
        """Compute the validation loss.

        Args:
            examples: images to validate on, of which the first :data:`MAX_EXAMPLES` are used.
            levels: number of noise levels; :data:`VALIDATION_LEVELS` by default.
        """
        sigmas = self.noise_levels.spread(self.objective.denoiser.sigmas, levels or VALIDATION_LEVELS)
        losses = []
        for index, example in enumerate(examples[:MAX_EXAMPLES]):
            generator = generator_for(self.seed, _STREAM, index)
            for sigma in sigmas:
                noise = standard_noise((1, *example.size), generator)
                draw = Draw([example.variant(0)], sigma.view(1), noise)
                losses.append(self.objective(draw).sum().item())
        return sum(losses) / len(losses)

    def first_image(self, examples: Sequence[Example]) -> float:
        """Compute the loss of the first image on few noise levels: enough for the divergence check."""
        return self(examples[:1], DIVERGENCE_LEVELS)
