"""Draws: reproducible, independent, of the stated distribution."""

import pytest
import torch
from hyperbooth.trainers.diffusion.noise_levels import DISTRIBUTIONS, NoiseLevels, standard_noise
from hyperbooth.trainers.engine.rng import generator_for
from hypothesis import given
from hypothesis import strategies as st

SIGMAS = torch.linspace(0.1, 10, 100)


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**7))
def test_each_step_has_reproducible_draws_of_its_own(seed: int, step: int) -> None:
    draws = [torch.randn(4, generator=generator_for(seed, s)) for s in (step, step, step + 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], torch.randn(4, generator=generator_for(seed ^ 1, step)))


def test_steps_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(1000, generator=generator_for(0, step)) for step in range(50)])
    correlation = torch.corrcoef(draws) - torch.eye(50)
    assert correlation.abs().max() < 0.2


def test_noise_levels_come_from_the_models_own_table() -> None:
    for name in DISTRIBUTIONS:
        levels = NoiseLevels(distribution=name).sample(SIGMAS, 500, generator_for(0))
        assert torch.isin(levels, SIGMAS).all()


def positions(levels: NoiseLevels) -> torch.Tensor:
    return torch.searchsorted(SIGMAS, levels.sample(SIGMAS, 20000, generator_for(0))) / 100


QUARTILES = torch.tensor([0.25, 0.5, 0.75])
NORMAL = torch.distributions.Normal(0, 1).icdf(QUARTILES)
EXPECTED = [
    (NoiseLevels(distribution="uniform"), QUARTILES),
    (NoiseLevels(distribution="uniform", low=0.2, high=0.6), 0.2 + 0.4 * QUARTILES),
    (NoiseLevels(distribution="logit_normal"), NORMAL.sigmoid()),
    (NoiseLevels(distribution="logit_normal", mean=-0.5, std=1.5), (-0.5 + 1.5 * NORMAL).sigmoid()),
    (NoiseLevels(distribution="sigmoid", mean=3.0), NORMAL.sigmoid()),
    (NoiseLevels(distribution="shifted", shift=3.0), 3 * QUARTILES / (1 + 2 * QUARTILES)),
    (NoiseLevels(distribution="shifted", shift=1.0), QUARTILES),
]


@pytest.mark.parametrize(("levels", "quartiles"), EXPECTED, ids=str)
def test_the_quartiles_are_the_formulas(levels: NoiseLevels, quartiles: torch.Tensor) -> None:
    torch.testing.assert_close(positions(levels).quantile(QUARTILES), quartiles, atol=0.02, rtol=0)


@given(
    st.sampled_from(list(DISTRIBUTIONS)), st.floats(0, 0.9), st.floats(0.05, 1), st.floats(0.1, 20), st.integers(1, 20)
)
def test_noise_levels_stay_within_their_bounds(name: str, low: float, width: float, shift: float, n: int) -> None:
    high = min(1.0, low + width)
    levels = NoiseLevels(distribution=name, shift=shift, low=low, high=high)
    for drawn in (levels.sample(SIGMAS, n, generator_for(n)), levels.spread(SIGMAS, n)):
        place = torch.searchsorted(SIGMAS, drawn)
        assert place.min() >= int(low * 100) - 1 and place.max() <= min(99, int(high * 100) + 1)


def test_the_spread_is_fixed_and_follows_the_distribution() -> None:
    spread = NoiseLevels(distribution="uniform").spread(SIGMAS, 4)
    assert torch.equal(spread, SIGMAS[[12, 37, 62, 87]])
    assert (NoiseLevels(distribution="shifted", shift=5.0).spread(SIGMAS, 4) > spread).all()


def test_offset_noise_shifts_whole_channels() -> None:
    plain, offset = (standard_noise((2, 3, 40, 40), generator_for(0), by) for by in (0.0, 0.5))
    difference = offset - plain
    torch.testing.assert_close(difference, difference.mean((2, 3), keepdim=True).expand_as(difference))
    assert difference.mean((2, 3)).abs().min() > 0


def test_the_global_random_state_is_unchanged() -> None:
    before = torch.get_rng_state()
    NoiseLevels().sample(SIGMAS, 5, generator_for(1, 2))
    assert torch.equal(before, torch.get_rng_state())
