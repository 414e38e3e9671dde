"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242) on any parametrisation of the change.

``E[ w ||x0_hat(x_t, c) - x0||^2 + lambda w' ||x0_hat(x'_t', c_class) - x0_class||^2 ]``, with noise and level drawn
independently for the second term (prior preservation).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from .losses import DenoisingLoss, weighting
from .noise import SAMPLERS, generator_for
from .options import TrainingOptions
from .subject import Batches, Example, Subject

Condition = Callable[[Sequence[Example]], Any]
"""Examples of a batch -> what the denoiser takes for their prompts."""

_ORDER, _PRIOR_ORDER, _DRAWS, _PRIOR_DRAWS = range(4)


@dataclass(frozen=True)
class DreamBooth:
    """The loss terms of each batch: the subject's, then the prior's.

    Args:
        denoiser: the model being personalised, adapter attached.
        condition: gives a batch's conditioning.
        to_model: a latent as the VAE gave it -> model space, on the training device.
        subject: what is learnt.
        options: see :class:`TrainingOptions`.
        batch_size: examples per term.
        seed: of every draw.
    """

    denoiser: Denoiser
    condition: Condition
    to_model: Callable[[Tensor], Tensor]
    subject: Subject
    options: TrainingOptions
    batch_size: int
    seed: int

    def __call__(self, batch: int) -> Iterator[Tensor]:
        """Scalar loss terms of batch number ``batch``."""
        yield self._term(self.subject.examples, batch, _ORDER, _DRAWS)
        if self.has_prior:
            yield self.options.prior_weight * self._term(self.subject.class_examples, batch, _PRIOR_ORDER, _PRIOR_DRAWS)

    @property
    def has_prior(self) -> bool:
        wanted = self.options.prior_mode == "class images" and self.options.prior_weight > 0
        return wanted and bool(self.subject.class_examples)

    def _term(self, examples: Sequence[Example], batch: int, order: int, draws: int) -> Tensor:
        chosen = Batches(examples, self.batch_size, generator_for(self.seed, order).initial_seed())[batch]
        generator = generator_for(self.seed, draws, batch)
        clean, mask = self._clean(chosen, generator)
        sigma = SAMPLERS[self.options.noise_sampling](self.denoiser.sigmas, len(chosen), generator).to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        loss = DenoisingLoss(self.denoiser, weighting(self.options.loss_weighting, self.options.min_snr_gamma))
        return loss(clean, self.condition(chosen), sigma, noise, mask).mean()

    def _clean(self, examples: Sequence[Example], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """One variant of each example: latents in model space, and masks if any example has one."""
        latents, masks = [], []
        for example in examples:
            variant = int(torch.randint(len(example.latents), (1,), generator=generator))
            latents.append(example.latents[variant])
            masks.append(torch.ones_like(latents[-1][:1]) if example.mask is None else example.mask[variant])
        clean = self.to_model(torch.stack(latents))
        masked = any(example.mask is not None for example in examples)
        return clean, torch.stack(masks).to(clean) if masked else None
