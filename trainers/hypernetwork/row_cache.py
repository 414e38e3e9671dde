"""Rows of many, read when they are asked for, or kept in memory where all of them are few."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

Key = TypeVar("Key", bound=Hashable)

MOST_BYTES = 2 * 2**30
"""What is kept in memory of one kind: the features of 2,000 pictures by a ViT-H take 1.2 GiB."""


class RowCache(Generic[Key]):
    """``rows(keys) -> [n, ...]``.

    Args:
        read: the same from where they are.
        keys: all there are.
    """

    def __init__(self, read: Callable[[Sequence[Key]], Tensor], keys: Sequence[Key]):
        self._read, self._kept = read, None
        one = read(keys[:1])
        if len(keys) * one.numel() * one.element_size() <= MOST_BYTES:
            self._kept, self._place = read(keys), {key: place for place, key in enumerate(keys)}

    def __call__(self, keys: Sequence[Key]) -> Tensor:
        if self._kept is None:
            return self._read(keys)
        return self._kept[[self._place[key] for key in keys]]
