"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242) on any parametrisation of the change.

``E[ w ||x0_hat(x_t, c) - x0||^2 + lambda w' ||x0_hat(x'_t', c_class) - x0_class||^2 ]``, with noise and level drawn
independently for the second term (prior preservation).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...models.backbone.denoiser import Denoiser
from ...models.hollowed_net.activation_cache import ActivationCache
from ...models.hollowed_net.network import Activation, HollowedNetwork
from ..config import TrainingOptions
from ..data.dataset import Batches, Example, Subject
from ..diffusion.losses import Teacher, weighting
from ..diffusion.noise_levels import standard_noise
from ..diffusion.objective import Condition, Draw, Objective
from ..engine.rng import generator_for

_ORDER, _PRIOR_ORDER, _DRAWS, _PRIOR_DRAWS, _VALIDATION = range(5)

LEVELS = 8
"""Noise levels of a validation: quantiles of the distribution trained on."""
PROBED = 4
"""The same of a look at whether the run still learns: about the time of two steps."""
MOST_VALIDATED = 4
"""Pictures of a validation at most; 32 forwards are enough for a curve."""


@dataclass(frozen=True)
class Term:
    """One term of a batch's loss: its draw, its weight, and whether the model as it was is the teacher."""

    draw: Draw
    weight: float = 1.0
    by_teacher: bool = False


@dataclass(frozen=True)
class DreamBoothLoss:
    """The loss terms of each batch: the subject's, then the prior's.

    Args:
        denoiser: the model being personalised, adapter attached.
        condition: gives a batch's conditioning.
        to_model: a latent as the VAE gave it -> model space, on the training device.
        subject: what is learnt.
        options: see :class:`TrainingOptions`.
        batch_size: examples per term.
        seed: of every draw.
        without_adapter: inside it the model is as it was before training; ``prediction`` needs it.
        pieces: a batch goes through the network in so many parts, for memory; the loss is the same.
        records: of a hollow network; its batches come in turn.
        teacher_apart: the run starts from an adapter, so that the teacher has records of its own.
    """

    denoiser: Denoiser
    condition: Condition
    to_model: Callable[[Tensor], Tensor]
    subject: Subject
    options: TrainingOptions
    batch_size: int
    seed: int
    without_adapter: Callable[[], AbstractContextManager[None]] = nullcontext
    pieces: int = 1
    records: ActivationCache | None = None
    teacher_apart: bool = False

    def __call__(self, batch: int) -> Iterator[Tensor]:
        """Scalar loss terms of batch number ``batch``; their sum is the loss."""
        for term in self._terms_of(batch if self.records is None else self.records.cached_batch(batch)):
            yield from self._losses(term)

    def sample_names(self, batch: int) -> list[str]:
        """Of the draws of a batch, see :class:`.hollowing.Source`."""
        return [name for term in self._terms_of(batch) for name in self._names(term)]

    @torch.no_grad()
    def record_batch(self, batch: int, hollow: HollowedNetwork) -> Iterator[tuple[str, list[Activation]]]:
        """The whole network, run on each draw of a batch; what its deep blocks gave."""
        for term in self._terms_of(batch):
            name, *of_teacher = self._names(term)
            yield name, self._recorded(term.draw, hollow)
            for name in of_teacher:
                with self.without_adapter():
                    records = self._recorded(term.draw, hollow)
                yield name, records

    def _recorded(self, draw: Draw, hollow: HollowedNetwork) -> list[Activation]:
        at_once, parts = replace(self, pieces=1), []
        for part in self._pieces(draw, of_records=True):
            with hollow.recording() as records:
                _ = list(at_once._losses(Term(replace(part, name=""))))
            parts.append(records)
        return [_joined(of_span) for of_span in zip(*parts, strict=True)]

    def _names(self, term: Term) -> list[str]:
        """Of the draw, and of what the teacher makes of it where that is something else."""
        names = [term.draw.name]
        return [*names, term.draw.of_teacher.name] if term.by_teacher and self.teacher_apart else names

    def _terms_of(self, batch: int) -> Iterator[Term]:
        yield Term(self._draw(self.subject.examples, batch, _ORDER, _DRAWS, self.options.caption_dropout))
        if prior := self.prior:
            drawn = self._draw(prior, batch, _PRIOR_ORDER, _PRIOR_DRAWS)
            yield Term(drawn, self.options.prior_weight, self.options.prior_mode == "prediction")

    @property
    def prior(self) -> Sequence[Example]:
        """What the prior-preservation term is computed on, if there is to be one."""
        if self.options.prior_mode == "none" or self.options.prior_weight == 0:
            return ()
        if self.options.prior_mode == "class images" or self.subject.class_examples:
            return self.subject.class_examples
        return self.subject.as_class()

    @property
    def largest(self) -> Example:
        """The example that takes the most memory."""
        return max((*self.subject.examples, *self.prior), key=lambda example: example.latents[0].numel())

    def of_one_sample(self) -> Tensor:
        """The loss of one sample of the largest size."""
        only, options = replace(self.subject, examples=(self.largest,)), replace(self.options, caption_dropout=0.0)
        return next(iter(replace(self, subject=only, options=options, batch_size=1, pieces=1, records=None)(0)))

    def probe(self) -> float:
        """The loss of the first picture on a few fixed levels: enough to see that a model is ruined."""
        return self.validate(self.subject.examples[:1], PROBED)

    @torch.no_grad()
    def validate(self, examples: Sequence[Example], levels: int = LEVELS) -> float:
        """Mean loss over fixed noise and fixed levels: a number that differs only as the model does."""
        sigma = self.options.noise_levels.spread(self.denoiser.sigmas, levels)
        losses = []
        for index, example in enumerate(examples[:MOST_VALIDATED]):
            generator = generator_for(self.seed, _VALIDATION, index)
            for level in sigma:
                noise = standard_noise((1, *example.size), generator)
                draw = Draw([example.variant(0)], level.view(1), noise)
                losses += [loss.item() for loss in self._losses(Term(draw))]
        return sum(losses) / len(losses)

    def _draw(
        self, examples: Sequence[Example], batch: int, order: int, draws: int, caption_dropout: float = 0.0
    ) -> Draw:
        chosen = Batches(examples, self.batch_size, generator_for(self.seed, order).initial_seed())[batch]
        generator = generator_for(self.seed, draws, batch)
        variants = [_variant(example, generator) for example in chosen]
        if caption_dropout:
            dropped = (torch.rand(len(variants), generator=generator) < caption_dropout).tolist()
            variants = [
                replace(example, cond=self.subject.unconditional, prompt="") if drop else example
                for example, drop in zip(variants, dropped, strict=True)
            ]
        sigma = self.options.noise_levels.sample(self.denoiser.sigmas, len(variants), generator)
        noise = standard_noise((len(variants), *variants[0].size), generator, self.options.noise_offset)
        return Draw(variants, sigma, noise, f"{batch}.{draws}")

    def _losses(self, term: Term) -> Iterator[Tensor]:
        """The weighted mean over the term's draw, in pieces."""
        choose = weighting(self.options.loss_weighting, self.options.min_snr_gamma)
        objective = Objective(self.denoiser, self.condition, self.to_model, choose)
        for part in self._pieces(term.draw, self.records is not None):
            teacher = self._teacher(part) if term.by_teacher else None
            each = objective(part, teacher, partial(self._on_record, part))
            yield term.weight * each.sum() / len(term.draw.examples)

    def _pieces(self, draw: Draw, of_records: bool) -> Iterator[Draw]:
        """What goes through the network at once. With records, texts that do not fit into one pass go singly."""
        for part in draw.micro_batches(self.pieces):
            single = of_records and isinstance(self.condition(part.examples), tuple)
            yield from part.micro_batches(len(part.examples)) if single else (part,)

    def _on_record(self, draw: Draw, device: torch.device) -> AbstractContextManager[None]:
        if self.records is None or not draw.name:
            return nullcontext()
        return self.records.replaying(draw.name, slice(draw.start, draw.start + len(draw.examples)), device)

    def _teacher(self, draw: Draw) -> Teacher:
        """The model as it was, on the same text."""

        @torch.no_grad()
        def estimate(x: Tensor, sigma: Tensor) -> Tensor:
            apart = self._on_record(draw.of_teacher, x.device) if self.teacher_apart else nullcontext()
            with self.without_adapter(), apart:
                return self.denoiser(x, sigma, self.condition(draw.examples))

        return estimate


def _joined(records: Sequence[Activation]) -> Activation:
    """Records of the parts of a batch as one."""
    return tuple(_filled_up(tensors) for tensors in zip(*records, strict=True))


def _filled_up(streams: Sequence[Tensor]) -> Tensor:
    """As one batch; those of shorter texts get zeros at their end, which nobody reads, see :mod:`..models.hollow`."""
    longest = max(stream.shape[1] for stream in streams)
    return torch.cat([pad(s, (*(0, 0) * (s.ndim - 2), 0, longest - s.shape[1])) for s in streams])


def _variant(example: Example, generator: torch.Generator) -> Example:
    return example.variant(int(torch.randint(len(example.latents), (1,), generator=generator)))
