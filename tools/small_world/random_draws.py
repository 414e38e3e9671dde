"""Random numbers that depend on nothing but what is given: a generator, or an integer."""

from __future__ import annotations

from collections.abc import Iterator

import torch

MASK = (1 << 64) - 1


def uniforms(generator: torch.Generator, count: int) -> Iterator[float]:
    """`count` numbers in [0, 1) from the generator, in one draw."""
    return iter(torch.rand(count, generator=generator, dtype=torch.float64).tolist())


def mix(state: int) -> int:
    """A 64-bit integer of which every bit depends on every bit of `state` (SplitMix64, Steele, Lea and Flood 2014)."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def scatter(seed: int, count: int) -> list[float]:
    """`count` numbers in [0, 1) that belong to `seed`: the same on every machine."""
    return [(mix(seed * 0x2545F491 + i) >> 11) / (1 << 53) for i in range(count)]


def generator_of(seed: int) -> torch.Generator:
    """A generator of its own for `seed`; neighboring seeds are mixed apart."""
    return torch.Generator().manual_seed(mix(seed) >> 1)
