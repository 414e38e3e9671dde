"""The random draws of a batch: order of the examples, variants, caption dropout, noise levels and noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import TrainingOptions
from ..data.dataset import Batches, Example, Subject
from ..diffusion.noise_levels import standard_noise
from ..diffusion.objective import Condition, Draw
from ..engine.rng import generator_for


@dataclass(frozen=True)
class _Streams:
    """Numbers of the random streams of a loss term: one for the order of the examples, one for all else."""

    order: int
    draws: int


_SUBJECT, _PRIOR = _Streams(order=0, draws=2), _Streams(order=1, draws=3)


@dataclass(frozen=True)
class Term:
    """One term of a batch's loss, before it is computed.

    Args:
        draw: what the term is computed on.
        weight: factor of the term.
        by_teacher: whether the model without the adapter is the target instead of the clean latent.
    """

    draw: Draw
    weight: float = 1.0
    by_teacher: bool = False


@dataclass(frozen=True, kw_only=True)
class DrawSampler:
    """Draw the loss terms of each batch: the subject's, then the prior's.

    The draws of batch ``b`` depend on ``(seed, b)`` alone. Noise and noise levels of the two terms are independent.

    Args:
        subject: the dataset.
        options: caption dropout, distributions of noise and noise levels, and the prior-preservation term.
        sigmas: the model's table of noise levels ``[T]``.
        batch_size: examples per term.
        seed: of every draw.
    """

    subject: Subject
    options: TrainingOptions
    sigmas: Tensor
    batch_size: int = 1
    seed: int = 0

    def terms(self, batch: int) -> Iterator[Term]:
        """Draw the terms of batch number ``batch``."""
        yield Term(self._draw(self.subject.examples, batch, _SUBJECT, self.options.caption_dropout))
        if prior := self.prior:
            draw = self._draw(prior, batch, _PRIOR)
            yield Term(draw, self.options.prior_weight, by_teacher=self.options.prior_mode == "prediction")

    @property
    def prior(self) -> Sequence[Example]:
        """The examples of the prior-preservation term; empty without one."""
        if self.options.prior_mode == "none" or self.options.prior_weight == 0:
            return ()
        if self.options.prior_mode == "class images" or self.subject.class_examples:
            return self.subject.class_examples
        return self.subject.as_class()

    @property
    def largest(self) -> Example:
        """The example with the largest latent, which needs the most memory."""
        return max((*self.subject.examples, *self.prior), key=lambda example: example.latents[0].numel())

    def of_largest(self) -> "DrawSampler":
        """Return the sampler of batches of one sample: the largest example, with its own prompt."""
        return replace(
            self,
            subject=replace(self.subject, examples=(self.largest,)),
            options=replace(self.options, caption_dropout=0.0),
            batch_size=1,
        )

    def _draw(
        self, examples: Sequence[Example], batch: int, streams: _Streams, caption_dropout: float = 0.0
    ) -> Draw:  # fmt: skip
        order = generator_for(self.seed, streams.order).initial_seed()
        chosen = Batches(examples, self.batch_size, order)[batch]
        generator = generator_for(self.seed, streams.draws, batch)
        variants = [_draw_variant(example, generator) for example in chosen]
        if caption_dropout:
            dropped = (torch.rand(len(variants), generator=generator) < caption_dropout).tolist()
            variants = [
                replace(example, cond=self.subject.unconditional, prompt="") if drop else example
                for example, drop in zip(variants, dropped, strict=True)
            ]
        sigma = self.options.noise_levels.sample(self.sigmas, len(variants), generator)
        noise = standard_noise((len(variants), *variants[0].size), generator, self.options.noise_offset)
        return Draw(variants, sigma, noise, f"{batch}.{streams.draws}")


def _draw_variant(example: Example, generator: torch.Generator) -> Example:
    return example.variant(int(torch.randint(len(example.latents), (1,), generator=generator)))


def micro_batches(draw: Draw, count: int, one_pass: Condition | None = None) -> Iterator[Draw]:
    """Split a draw into micro-batches.

    Args:
        draw: of a whole batch.
        count: number of micro-batches, at most.
        one_pass: gives the conditioning of examples, for networks whose activations are cached: those need one
            forward per micro-batch, so that one whose prompts do not fit into a single forward is split into
            single samples. None keeps it whole.
    """
    for part in draw.micro_batches(count):
        single = one_pass is not None and isinstance(one_pass(part.examples), tuple)
        yield from part.micro_batches(len(part.examples)) if single else (part,)
