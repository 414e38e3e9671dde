"""The linear guess: its directions, and what it makes of people who are mostly chance."""

import pytest
import torch
from hyperbooth.models.hypernetwork.linear_init import LinearRegression, fit_linear, principal
from torch import Tensor

CODE, FEATURES, NUMBERS = 4, 20, 800


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def people(count: int, noise: float, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Features, numbers, and what of the numbers a picture shows."""
    code = draw(count, CODE, seed=seed)
    x = code @ draw(CODE, FEATURES, seed=10) + 0.1 * draw(count, FEATURES, seed=seed + 1)
    shown = code @ draw(CODE, NUMBERS, seed=11)
    return x, shown + noise * draw(count, NUMBERS, seed=seed + 2), shown


def left_over(found: LinearRegression, mean: Tensor, noise: float) -> float:
    """Of what pictures show of new people, as a share of what the mean leaves."""
    x, _, shown = people(300, noise, seed=50)
    guessed = mean + (x @ found.weight.mT + found.bias) @ found.directions.mT
    return ((guessed - shown).square().sum() / (shown - mean).square().sum()).item()


@pytest.mark.parametrize(("noise", "most"), [(0.1, 0.05), (2.0, 0.3), (20.0, 1.05)])
def test_it_foretells_what_pictures_show_and_is_never_worse_than_the_mean(noise: float, most: float) -> None:
    x, z, _ = people(200, noise)
    mean = z.mean(0)
    found = fit_linear(x, z - mean, range(200), 16)
    assert left_over(found, mean, noise) < most
    x, z, _ = people(300, noise, seed=50)
    guessed = mean + (x @ found.weight.mT + found.bias) @ found.directions.mT
    true = 1 - ((guessed - z).square().sum() / (z - mean).square().sum()).item()
    assert found.explained_variance == pytest.approx(true, abs=0.05)


def test_without_any_relation_it_is_the_mean() -> None:
    x, _, _ = people(100, 1.0)
    z = draw(100, NUMBERS, seed=7)
    found = fit_linear(x, z - z.mean(0), range(100), 8)
    assert abs(found.explained_variance) < 0.01 and left_over(found, z.mean(0) * 0, 1.0) < 1.02


def test_several_pictures_of_each_and_more_directions_than_people() -> None:
    x, z, _ = people(6, 0.1)
    found = fit_linear(x.repeat_interleave(3, 0), z - z.mean(0), [i for i in range(6) for _ in range(3)], 32)
    assert found.directions.shape[1] == 5 and found.weight.shape == (5, FEATURES) and 0 <= found.spanned <= 1.001


def test_principal_directions_are_the_singular_ones() -> None:
    z = draw(12, 50) * torch.linspace(3, 0.1, 12)[:, None]
    coordinates, directions = principal(z, 5)
    u, s, vh = torch.linalg.svd(z, full_matrices=False)
    assert torch.allclose(coordinates @ directions.mT, (u[:, :5] * s[:5]) @ vh[:5], atol=1e-4)
    assert torch.allclose(directions.mT @ directions, torch.eye(5), atol=1e-4)
    assert torch.allclose(coordinates.norm(dim=0), s[:5], atol=1e-3)
    whole, all_directions = principal(z[:3].repeat(2, 1), 99)
    assert all_directions.shape == (50, 3) and torch.allclose(whole @ all_directions.mT, z[:3].repeat(2, 1), atol=1e-4)
