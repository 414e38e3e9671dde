"""A cache of rows by key: all in memory where they are few, and otherwise read on demand."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

Key = TypeVar("Key", bound=Hashable)

MAX_CACHE_BYTES = 2 * 2**30
"""Bytes that one cache keeps in memory: the features of 2,000 images by a ViT-H take 1.2 GiB."""


class RowCache(Generic[Key]):
    """Return rows by key: ``rows(keys)`` is ``[n, ...]``, one row for each key.

    Args:
        read: reads rows from where they are stored.
        keys: all keys there are.
    """

    def __init__(self, read: Callable[[Sequence[Key]], Tensor], keys: Sequence[Key]):
        self._read, self._rows = read, None
        one = read(keys[:1])
        if len(keys) * one.numel() * one.element_size() <= MAX_CACHE_BYTES:
            self._rows, self._index = read(keys), {key: index for index, key in enumerate(keys)}

    def __call__(self, keys: Sequence[Key]) -> Tensor:
        if self._rows is None:
            return self._read(keys)
        return self._rows[[self._index[key] for key in keys]]
