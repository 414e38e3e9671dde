"""The DreamBooth loss (Ruiz et al. 2022, arXiv 2208.12242) for any parametrization of the weight update.

``E[ w ||x0_hat(x_t, c) - x0||^2 + lambda w' ||x0_hat(x'_t', c_class) - x0_class||^2 ]``, with noise and noise level
drawn independently for the second term (prior preservation).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...models.hollowed_net.activation_cache import ActivationCache
from ..config import TrainingOptions
from ..data.dataset import Subject
from ..diffusion.losses import Teacher, weighting
from ..diffusion.objective import Draw, Objective
from ..session import TrainingSession
from .draws import DrawSampler, Term, micro_batches


@dataclass(frozen=True, kw_only=True)
class DreamBoothLoss:
    """Compute the loss terms of each batch: the subject's, then the prior's.

    Args:
        objective: the per-sample loss on the model, adapter attached.
        draws: gives the terms of each batch.
        without_adapter: context in which the model is as it was before training, for the teacher of
            ``prior_mode`` ``prediction``.
        micro_batches: parts that a batch goes through the network in, to save memory; the loss is the same.
        cache: activations of the removed blocks of a Hollowed Net; its batches are repeated in turn. None computes
            every block.
        separate_teacher: training starts from an adapter, so that the teacher has cached activations of its own.
    """

    objective: Objective
    draws: DrawSampler
    without_adapter: Callable[[], AbstractContextManager[None]] = nullcontext
    micro_batches: int = 1
    cache: ActivationCache | None = None
    separate_teacher: bool = False

    @classmethod
    def for_session(
        cls,
        session: TrainingSession,
        *,
        subject: Subject,
        options: TrainingOptions,
        batch_size: int = 1,
        seed: int = 0,
        without_adapter: Callable[[], AbstractContextManager[None]] = nullcontext,
        separate_teacher: bool = False,
    ) -> "DreamBoothLoss":
        """Return the loss on the session's model.

        Args:
            session: the model, opened for training.
            subject: the dataset.
            options: weighting, distributions of the draws, and the prior-preservation term.
            batch_size: examples per term.
            seed: of every draw.
            without_adapter: see the class.
            separate_teacher: see the class.
        """
        objective = Objective(
            denoiser=session.denoiser,
            condition=session.text.condition,
            to_model=session.denoiser.to_model,
            weighting=weighting(options.loss_weighting, options.min_snr_gamma),
        )
        draws = DrawSampler(
            subject=subject, options=options, sigmas=session.denoiser.sigmas, batch_size=batch_size, seed=seed
        )
        return cls(objective=objective, draws=draws, without_adapter=without_adapter, separate_teacher=separate_teacher)

    def __call__(self, batch: int) -> Iterator[Tensor]:
        """Yield the scalar loss terms of batch number ``batch``; their sum is the loss."""
        for term in self.draws.terms(batch if self.cache is None else self.cache.cached_batch(batch)):
            yield from self._losses(term)

    def largest_sample(self) -> Tensor:
        """Compute the loss of one sample of the largest size, with every block of the network."""
        single = replace(self, draws=self.draws.of_largest(), micro_batches=1, cache=None)
        return next(single(0))

    def _losses(self, term: Term) -> Iterator[Tensor]:
        """Yield each micro-batch's share of the weighted mean over the term's samples."""
        one_pass = None if self.cache is None else self.objective.condition
        for part in micro_batches(term.draw, self.micro_batches, one_pass):
            teacher = self._teacher(part) if term.by_teacher else None
            losses = self.objective(part, teacher, partial(self._cached, part))
            yield term.weight * losses.sum() / len(term.draw.examples)

    def _teacher(self, draw: Draw) -> Teacher:
        """Return the model without the adapter, under the prompts of ``draw``."""

        @torch.no_grad()
        def estimate(x: Tensor, sigma: Tensor) -> Tensor:
            cached = self._cached(draw.of_teacher, x.device) if self.separate_teacher else nullcontext()
            with self.without_adapter(), cached:
                return self.objective.denoiser(x, sigma, self.objective.condition(draw.examples))

        return estimate

    def _cached(self, draw: Draw, device: torch.device) -> AbstractContextManager[None]:
        """Return the context in which the network runs on the cached activations of ``draw``, if there are any."""
        if self.cache is None or not draw.name:
            return nullcontext()
        return self.cache.replaying(draw.name, slice(draw.start, draw.start + len(draw.examples)), device)
