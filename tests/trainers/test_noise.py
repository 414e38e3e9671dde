"""Draws: reproducible, independent, of the stated distribution."""

import torch
from hyperbooth.trainers.noise import SAMPLERS, generator_for
from hypothesis import given
from hypothesis import strategies as st

SIGMAS = torch.linspace(0.1, 10, 100)


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**7))
def test_a_step_draws_the_same_each_time_and_another_than_its_neighbours(seed: int, step: int) -> None:
    draws = [torch.randn(4, generator=generator_for(seed, s)) for s in (step, step, step + 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], torch.randn(4, generator=generator_for(seed ^ 1, step)))


def test_steps_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(1000, generator=generator_for(0, step)) for step in range(50)])
    correlation = torch.corrcoef(draws) - torch.eye(50)
    assert correlation.abs().max() < 0.2


def test_levels_come_from_the_models_own_table() -> None:
    for sampler in SAMPLERS.values():
        levels = sampler(SIGMAS, 500, generator_for(0))
        assert torch.isin(levels, SIGMAS).all()


def test_uniform_is_uniform_and_logit_normal_prefers_the_middle() -> None:
    n = 20000
    place = {name: torch.searchsorted(SIGMAS, f(SIGMAS, n, generator_for(0))) / 100 for name, f in SAMPLERS.items()}
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(place["uniform"].quantile(quartiles), quartiles, atol=0.02, rtol=0)
    expected = (torch.distributions.Normal(0, 1).icdf(quartiles)).sigmoid()
    torch.testing.assert_close(place["logit_normal"].quantile(quartiles), expected, atol=0.02, rtol=0)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    SAMPLERS["uniform"](SIGMAS, 5, generator_for(1, 2))
    assert torch.equal(before, torch.get_rng_state())
