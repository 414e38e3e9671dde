"""Define the population: person n, the same on every machine, and which people are held out of training."""

from __future__ import annotations

from collections.abc import Iterator

from ..random_draws import generator_of, mix
from .identity import Identity, Vase, sample_identity, sample_vase

HELD_OUT = 16
"""One in so many people is held out."""


def person(seed: int) -> Identity:
    """Return person number `seed`."""
    return sample_identity(generator_of(seed))


def vase(seed: int) -> Vase:
    """Return vase number `seed`."""
    return sample_vase(generator_of(seed))


def is_held_out(seed: int) -> bool:
    """Return whether this person is held out of all training, by a hash of the seed."""
    return mix(seed ^ 0x5EED) % HELD_OUT == 0


def seeds(held_out: bool, start: int = 0) -> Iterator[int]:
    """Yield the numbers of held-out people, or of the others, without end."""
    while True:
        if is_held_out(start) == held_out:
            yield start
        start += 1
