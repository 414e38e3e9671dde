"""Draw random numbers that depend only on a given generator or integer."""

from __future__ import annotations

from collections.abc import Iterator

import torch

MASK = (1 << 64) - 1


def uniforms(generator: torch.Generator, count: int) -> Iterator[float]:
    """Return `count` numbers in [0, 1) from the generator, in one draw."""
    return iter(torch.rand(count, generator=generator, dtype=torch.float64).tolist())


def mix(state: int) -> int:
    """Return a 64-bit integer whose bits depend on every bit of `state` (SplitMix64, Steele et al. 2014)."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def scatter(seed: int, count: int) -> list[float]:
    """Return `count` numbers in [0, 1) determined by `seed`, the same on every machine."""
    return [(mix(seed * 0x2545F491 + i) >> 11) / (1 << 53) for i in range(count)]


def generator_of(seed: int) -> torch.Generator:
    """Return a generator for `seed`; mixing decorrelates adjacent seeds."""
    return torch.Generator().manual_seed(mix(seed) >> 1)
