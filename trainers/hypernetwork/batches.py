"""Batches of a hypernetwork's training: an input image of each subject, and another image to denoise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..data.dataset import Example
from ..engine.rng import generator_for
from .feature_cache import ImageIndex

_ORDER = 0


@dataclass(frozen=True, kw_only=True)
class SubjectBatches:
    """The subjects that a hypernetwork trains on, and the order in which they are drawn.

    Args:
        subjects: their indices in the bank.
        image_counts: images of each, in the order of ``subjects``.
        input_counts: how many of a subject's images, from the first on, may be inputs; in the same order.
        theta: indices of subjects -> their trained parameters ``[n, N]``.
        features: indices of images -> their tokens ``[n, tokens, width]``.
        examples: indices of images -> what the denoising loss takes.
        batch_size: subjects per batch.
        seed: of the order.
    """

    subjects: Sequence[int]
    image_counts: Sequence[int]
    input_counts: Sequence[int]
    theta: Callable[[Sequence[int]], Tensor]
    features: Callable[[Sequence[ImageIndex]], Tensor]
    examples: Callable[[Sequence[ImageIndex]], list[Example]]
    batch_size: int
    seed: int

    def draw(self, batch: int, generator: torch.Generator) -> tuple[list[ImageIndex], list[ImageIndex]]:
        """Return the input images of batch ``batch``, and an image of the same subjects to denoise.

        The second is another image where the subject has several. Every subject comes once per epoch, in a new order
        each epoch; a batch may span two epochs.
        """
        inputs, targets = [], []
        for position in range(batch * self.batch_size, (batch + 1) * self.batch_size):
            i = self._at(position)
            count = self.image_counts[i]
            first = int(torch.randint(self.input_counts[i], (1,), generator=generator))
            other = int(torch.randint(max(1, count - 1), (1,), generator=generator))
            inputs.append((self.subjects[i], first))
            targets.append((self.subjects[i], (first + 1 + other) % count))
        return inputs, targets

    def _at(self, position: int) -> int:
        """Return the index into ``subjects`` at ``position`` of the sequence of all epochs."""
        epoch, index = divmod(position, len(self.subjects))
        return int(_order(len(self.subjects), self.seed, epoch)[index])


@lru_cache(maxsize=2)
def _order(subjects: int, seed: int, epoch: int) -> Tensor:
    """Return the shuffled order of one epoch; two are cached, since a batch may span two."""
    return torch.randperm(subjects, generator=generator_for(seed, _ORDER, epoch))
