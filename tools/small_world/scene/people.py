"""A population: person number n, the same everywhere, and which of them no training may see."""

from __future__ import annotations

from collections.abc import Iterator

from ..random_draws import generator_of, mix
from .identity import Identity, Vase, sample_identity, sample_vase

HELD_OUT = 16
"""One in so many people is held out."""


def person(seed: int) -> Identity:
    """Person number `seed`."""
    return sample_identity(generator_of(seed))


def vase(seed: int) -> Vase:
    """Vase number `seed`."""
    return sample_vase(generator_of(seed))


def is_held_out(seed: int) -> bool:
    """Whether this person is kept from all training, by a hash of the seed."""
    return mix(seed ^ 0x5EED) % HELD_OUT == 0


def seeds(held_out: bool, start: int = 0) -> Iterator[int]:
    """The numbers of people held out, or of the others, without end."""
    while True:
        if is_held_out(start) == held_out:
            yield start
        start += 1
