"""Generators folded from a seed and a path: reproducible, distinct, of any seed that a user can give."""

import pytest
import torch
from hyperbooth.trainers.engine.rng import generator_for
from hypothesis import given
from hypothesis import strategies as st

SEEDS = st.integers(-(2**63), 2**64 - 1)
PATHS = st.lists(st.integers(0, 2**31), max_size=3)


@given(SEEDS, PATHS)
def test_a_seed_and_path_give_the_same_draws_each_time(seed: int, path: list[int]) -> None:
    first, second = (generator_for(seed, *path) for _ in range(2))
    assert first.initial_seed() == second.initial_seed()
    assert 0 <= first.initial_seed() < 2**63, "a seed that is passed on fits into int64"
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))


def test_every_seed_and_path_gives_other_draws() -> None:
    seeds = [0, 1, 2, -1, 2**32, 2**33 + 1, 2**63, 2**64 - 2]
    paths = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (2, 3), (1, 2, 3), (2**32 + 1,)]
    assert len({generator_for(seed, *path).initial_seed() for seed in seeds for path in paths}) == 8 * 9


def test_a_negative_seed_is_taken_modulo_its_64_bits() -> None:
    assert generator_for(-1, 5).initial_seed() == generator_for(2**64 - 1, 5).initial_seed()


def test_a_negative_position_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        generator_for(0, -1)
