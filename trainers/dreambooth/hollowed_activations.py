"""Activations of the removed blocks of a Hollowed Net, for every draw of a run."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...models.hollowed_net.network import Activation, HollowedNetwork
from ..diffusion.objective import Draw, Objective
from .draws import DrawSampler, Term, micro_batches
from .loss import DreamBoothLoss


@dataclass(frozen=True, kw_only=True)
class DreamBoothActivations:
    """Run the whole network on the draws of a batch and return what the removed blocks output; no loss is computed.

    Args:
        objective: the model, adapter attached, and its conditioning.
        draws: gives the terms of each batch.
        without_adapter: context in which the model is as it was before training, for the teacher.
        micro_batches: parts that a batch goes through the network in, to save memory.
        separate_teacher: training starts from an adapter, so that the teacher has activations of its own.
    """

    objective: Objective
    draws: DrawSampler
    without_adapter: Callable[[], AbstractContextManager[None]] = nullcontext
    micro_batches: int = 1
    separate_teacher: bool = False

    @classmethod
    def for_loss(cls, loss: DreamBoothLoss, micro_batches: int = 1) -> "DreamBoothActivations":
        """Return the source of the activations that ``loss`` would cache."""
        return cls(
            objective=loss.objective,
            draws=loss.draws,
            without_adapter=loss.without_adapter,
            micro_batches=micro_batches,
            separate_teacher=loss.separate_teacher,
        )

    def sample_names(self, batch: int) -> list[str]:
        """Return the names under which the activations of batch number ``batch`` are cached."""
        return [draw.name for term in self.draws.terms(batch) for draw in self._cached_draws(term)]

    def sample_kinds(self, batch: int) -> list[Hashable]:
        """Return for each of these names what the shapes of its activations depend on: latents and prompts' lengths."""
        return [_kind(draw) for term in self.draws.terms(batch) for draw in self._cached_draws(term)]

    @torch.no_grad()
    def record_batch(self, batch: int, hollow: HollowedNetwork) -> Iterator[tuple[str, list[Activation]]]:
        """Yield the name of each draw of batch number ``batch`` and the activations of each span of ``hollow``."""
        for term in self.draws.terms(batch):
            student, *teacher = self._cached_draws(term)
            yield student.name, self._activations(term.draw, hollow)
            for draw in teacher:
                with self.without_adapter():
                    activations = self._activations(term.draw, hollow)
                yield draw.name, activations

    def _cached_draws(self, term: Term) -> list[Draw]:
        """Return the term's draw, and the teacher's if it has activations of its own."""
        return [term.draw, term.draw.of_teacher] if term.by_teacher and self.separate_teacher else [term.draw]

    def _activations(self, draw: Draw, hollow: HollowedNetwork) -> list[Activation]:
        """Return the activations of each span for the whole batch."""
        parts = []
        for part in micro_batches(draw, self.micro_batches, self.objective.condition):
            with hollow.recording() as activations:
                self.objective.estimate(part)
            parts.append(activations)
        return [_concatenate(of_span) for of_span in zip(*parts, strict=True)]


def _concatenate(activations: Sequence[Activation]) -> Activation:
    """Concatenate a span's activations of the micro-batches of a batch."""
    return tuple(_concatenate_padded(streams) for streams in zip(*activations, strict=True))


def _concatenate_padded(streams: Sequence[Tensor]) -> Tensor:
    """Concatenate along the batch; shorter prompts are padded with zeros at the end, which the network ignores.

    See :mod:`models.hollowed_net.network`.
    """
    longest = max(stream.shape[1] for stream in streams)
    return torch.cat([pad(s, (*(0, 0) * (s.ndim - 2), 0, longest - s.shape[1])) for s in streams])


def _kind(draw: Draw) -> Hashable:
    """Return the size of a draw's latents, its number of samples, and the shapes of their prompts' conditioning."""
    examples = draw.examples
    return (*examples[0].size, len(examples), frozenset(_shapes(example.cond) for example in examples))


def _shapes(value: Any) -> Hashable:
    """Return the shapes of all tensors in nested lists and mappings."""
    if isinstance(value, Tensor):
        return value.shape
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return tuple(_shapes(part) for part in parts)
