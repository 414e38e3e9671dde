"""Random generators derived from a seed and a path of integers."""

import numpy
import torch

DRAWS_VERSION = 3
"""Version of the draws, part of every run's key: a half-done run of other draws is not resumed."""

_SEEDS = 1 << 64


def generator_for(seed: int, *path: int) -> torch.Generator:
    """Return a CPU generator for one position (purpose, step, ...) in the run of ``seed``.

    A fold-in, as jax.random has it: the path is mixed into the seed by :class:`numpy.random.SeedSequence`, as the
    spawn key of child sequences, so that neighboring steps and seeds give unrelated draws.

    Args:
        seed: of the run; taken modulo 2^64, so that negative ones are valid.
        path: position in the run, integers of at least 0.

    Raises:
        ValueError: the path holds a negative integer.
    """
    sequence = numpy.random.SeedSequence(seed % _SEEDS, spawn_key=path)
    (state,) = sequence.generate_state(1, numpy.uint64)
    # 63 bits, so that ``initial_seed`` fits wherever a seed is an int64
    return torch.Generator("cpu").manual_seed(int(state) >> 1)
