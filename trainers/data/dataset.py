"""What is learnt: examples of the subject, and of its class for prior preservation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.rng import generator_for


@dataclass(frozen=True)
class Frame:
    """Which part of which picture a latent shows: SDXL's size conditioning (2307.01952, section 2.2).

    Args:
        width, height: of the whole picture before it was resized.
        crop_w, crop_h: left and top edge of the crop, in pixels of the resized picture.
        target_width, target_height: of the crop, what the latent decodes to.
    """

    width: int
    height: int
    crop_w: int
    crop_h: int
    target_width: int
    target_height: int


@dataclass(frozen=True)
class Example:
    """One picture, ready to train on.

    Args:
        latents: ``[variants, C, h, w]`` as the VAE gave them; a step takes one variant (the picture, its mirror image).
        cond: what the denoiser takes for the prompt (opaque here).
        prompt: the text, or None if only its conditioning is known.
        mask: weights of the loss ``[variants, 1, h, w]``, or None.
        frames: what each variant shows of its picture, or None if that is not known.
    """

    latents: Tensor
    cond: Any
    prompt: str | None = None
    mask: Tensor | None = None
    frames: tuple[Frame, ...] | None = None

    def variant(self, index: int) -> "Example":
        """The example with that variant only."""
        only = slice(index, index + 1)
        return replace(
            self,
            latents=self.latents[only],
            mask=None if self.mask is None else self.mask[only],
            frames=None if self.frames is None else self.frames[only],
        )

    def unframed(self) -> "Example":
        """The example without its frames: a picture of its own size, nothing cut away, as samples are asked for."""
        return replace(self, frames=None)

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of one latent; examples of one size make a batch."""
        return tuple(self.latents.shape[1:])


@dataclass(frozen=True)
class Subject:
    """The examples of a subject.

    Args:
        examples: pictures of it, "a [V] dog".
        class_examples: pictures of its class, "a dog"; empty without prior preservation.
        blank: conditioning of the empty prompt, for previews with guidance; None if unknown.
        class_cond: conditioning of the class prompt, for prior preservation without class images; None if unknown.
        class_prompt: its text, or None if only its conditioning is known.
        notes: what was done to the pictures, for the report.
    """

    examples: tuple[Example, ...]
    class_examples: tuple[Example, ...] = ()
    unconditional: Any = None
    class_cond: Any = None
    class_prompt: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.examples:
            raise ValueError("the subject has no image; connect at least one")

    @property
    def prompts(self) -> list[str]:
        """The distinct prompts of the subject's own examples, in order."""
        return list(dict.fromkeys(example.prompt for example in self.examples if example.prompt is not None))

    def as_class(self) -> tuple[Example, ...]:
        """The subject's own pictures under the class prompt; empty if that is unknown."""
        if self.class_cond is None:
            return ()
        return tuple(replace(e, cond=self.class_cond, prompt=self.class_prompt) for e in self.examples)

    def held_out(self, count: int) -> tuple["Subject", tuple[Example, ...]]:
        """The subject without its last ``count`` examples, and those."""
        kept = len(self.examples) - count
        return replace(self, examples=self.examples[:kept]), self.examples[kept:]


@dataclass(frozen=True)
class Batches:
    """An endless, reproducible order over examples, in batches of one size.

    Every example comes once per round, in a new order each round. Batch ``b`` depends on ``(seed, b)`` alone.
    """

    examples: Sequence[Example]
    batch_size: int
    seed: int

    def __getitem__(self, batch: int) -> list[Example]:
        per_round = sum(-(-len(group) // self.batch_size) for group in self._groups())
        return self._round(batch // per_round)[batch % per_round]

    def _groups(self) -> list[list[Example]]:
        groups: dict[tuple[int, ...], list[Example]] = {}
        for example in self.examples:
            groups.setdefault(example.size, []).append(example)
        return list(groups.values())

    def _round(self, number: int) -> list[list[Example]]:
        """The batches of one round: each size shuffled and cut, the last batch filled from the start, then shuffled."""
        generator = generator_for(self.seed, number)
        batches = []
        for group in self._groups():
            order = [group[i] for i in _permutation(len(group), generator)]
            for start in range(0, len(order), self.batch_size):
                batches.append([order[i % len(order)] for i in range(start, start + self.batch_size)])
        return [batches[i] for i in _permutation(len(batches), generator)]


def _permutation(n: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(n, generator=generator).tolist()
