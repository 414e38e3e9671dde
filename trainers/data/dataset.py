"""The dataset of a run: encoded examples of the subject, and of its class for prior preservation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.rng import generator_for


@dataclass(frozen=True)
class Frame:
    """Describe which part of an image a latent shows: SDXL's size conditioning (2307.01952, section 2.2).

    Args:
        width: of the whole image before it was resized, in pixels.
        height: of the whole image before it was resized, in pixels.
        crop_w: left edge of the crop, in pixels of the resized image.
        crop_h: top edge of the crop, in pixels of the resized image.
        target_width: of the crop, which is the width of the decoded latent.
        target_height: of the crop, which is the height of the decoded latent.
    """

    width: int
    height: int
    crop_w: int
    crop_h: int
    target_width: int
    target_height: int


@dataclass(frozen=True)
class Example:
    """Hold one encoded image with its prompt.

    Args:
        latents: ``[variants, C, h, w]`` as the VAE encodes them; a step takes one variant (such as the mirror image).
        cond: what the denoiser takes for the prompt (opaque here).
        prompt: the text, or None if only its conditioning is known.
        mask: weights of the loss ``[variants, 1, h, w]`` in [0, 1], or None for everywhere 1.
        frames: size conditioning of each variant, or None if unknown.
    """

    latents: Tensor
    cond: Any
    prompt: str | None = None
    mask: Tensor | None = None
    frames: tuple[Frame, ...] | None = None

    def variant(self, index: int) -> "Example":
        """Return the example with one variant only."""
        only = slice(index, index + 1)
        return replace(
            self,
            latents=self.latents[only],
            mask=None if self.mask is None else self.mask[only],
            frames=None if self.frames is None else self.frames[only],
        )

    def unframed(self) -> "Example":
        """Return the example without frames: the conditioning of an uncropped image, as for samples."""
        return replace(self, frames=None)

    @property
    def size(self) -> tuple[int, ...]:
        """The shape ``(C, h, w)`` of one latent; a batch holds examples of one size."""
        return tuple(self.latents.shape[1:])


@dataclass(frozen=True)
class Subject:
    """Hold the dataset of one subject.

    Args:
        examples: images of the subject, "a [V] dog".
        class_examples: images of its class, "a dog"; empty without prior preservation.
        unconditional: conditioning of the empty prompt, for guidance and caption dropout; None if unknown.
        class_cond: conditioning of the class prompt, for prior preservation without class images; None if unknown.
        class_prompt: text of the class prompt, or None if only its conditioning is known.
        notes: lines of the preprocessing report.

    Raises:
        ValueError: there is no example.
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
        """Return the subject's own images under the class prompt; empty if that is unknown."""
        if self.class_cond is None:
            return ()
        return tuple(replace(e, cond=self.class_cond, prompt=self.class_prompt) for e in self.examples)

    def held_out(self, count: int) -> tuple["Subject", tuple[Example, ...]]:
        """Return the subject without its last ``count`` examples, and those examples."""
        kept = len(self.examples) - count
        return replace(self, examples=self.examples[:kept]), self.examples[kept:]


@dataclass(frozen=True)
class Batches:
    """An endless, reproducible sampler of batches; all examples of a batch have one size.

    A round shows every example once, in a new order each. What is left of a size at the end of a round, because it
    fills no batch, begins that size's next batch: over ``batch_size`` rounds every example occurs exactly
    ``batch_size`` times, however few others have its size. Batch ``b`` depends on ``(seed, b)`` alone.

    Args:
        examples: the dataset.
        batch_size: examples per batch.
        seed: of the order.
    """

    examples: Sequence[Example]
    batch_size: int
    seed: int

    def __getitem__(self, batch: int) -> list[Example]:
        """Return the examples of batch number ``batch``, counted from the start."""
        return self._cycle(batch // len(self.examples))[batch % len(self.examples)]

    def _groups(self) -> list[list[Example]]:
        groups: dict[tuple[int, ...], list[Example]] = {}
        for example in self.examples:
            groups.setdefault(example.size, []).append(example)
        return list(groups.values())

    def _cycle(self, number: int) -> list[list[Example]]:
        """Return the batches of ``batch_size`` rounds, as many as there are examples.

        Each size's examples are shuffled for each round, one round after the other, and cut into batches; all batches
        that a round completes are shuffled.
        """
        generator = generator_for(self.seed, number)
        batches: list[tuple[int, list[Example]]] = []
        for group in self._groups():
            order = [group[i] for _ in range(self.batch_size) for i in _permutation(len(group), generator)]
            for end in range(self.batch_size, len(order) + 1, self.batch_size):
                batches.append(((end - 1) // len(group), order[end - self.batch_size : end]))
        shuffled = [batches[i] for i in _permutation(len(batches), generator)]
        return [batch for _, batch in sorted(shuffled, key=lambda entry: entry[0])]


def _permutation(n: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(n, generator=generator).tolist()
