"""Linear initialization: its directions, and its shrinkage for subjects whose parameters are mostly noise."""

import pytest
import torch
from hyperbooth.models.hypernetwork.linear_init import LinearRegression, fit_linear, principal_components
from torch import Tensor

CODE, FEATURES, PARAMETERS = 4, 20, 800


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def subjects(count: int, noise: float, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, parameters, and the part of the parameters that features determine."""
    code = draw(count, CODE, seed=seed)
    x = code @ draw(CODE, FEATURES, seed=10) + 0.1 * draw(count, FEATURES, seed=seed + 1)
    determined = code @ draw(CODE, PARAMETERS, seed=11)
    return x, determined + noise * draw(count, PARAMETERS, seed=seed + 2), determined


def unexplained_variance(fit: LinearRegression, mean: Tensor, noise: float) -> float:
    """Return the squared error for the determined part of new subjects, relative to that of the mean."""
    x, _, determined = subjects(300, noise, seed=50)
    predicted = mean + (x @ fit.weight.mT + fit.bias) @ fit.directions.mT
    return ((predicted - determined).square().sum() / (determined - mean).square().sum()).item()


@pytest.mark.parametrize(("noise", "most"), [(0.1, 0.05), (2.0, 0.3), (20.0, 1.05)])
def test_it_predicts_the_determined_part_and_is_never_worse_than_the_mean(noise: float, most: float) -> None:
    x, z, _ = subjects(200, noise)
    mean = z.mean(0)
    fit = fit_linear(x, z - mean, range(200), rank=16)
    assert unexplained_variance(fit, mean, noise) < most
    x, z, _ = subjects(300, noise, seed=50)
    predicted = mean + (x @ fit.weight.mT + fit.bias) @ fit.directions.mT
    true = 1 - ((predicted - z).square().sum() / (z - mean).square().sum()).item()
    assert fit.explained_variance == pytest.approx(true, abs=0.05)


def test_without_any_relation_it_predicts_the_mean() -> None:
    x, _, _ = subjects(100, 1.0)
    z = draw(100, PARAMETERS, seed=7)
    fit = fit_linear(x, z - z.mean(0), range(100), rank=8)
    assert abs(fit.explained_variance) < 0.01 and unexplained_variance(fit, z.mean(0) * 0, 1.0) < 1.02


def test_several_images_per_subject_and_more_directions_than_subjects() -> None:
    x, z, _ = subjects(6, 0.1)
    fit = fit_linear(x.repeat_interleave(3, 0), z - z.mean(0), [i for i in range(6) for _ in range(3)], rank=32)
    assert fit.directions.shape[1] == 5 and fit.weight.shape == (5, FEATURES) and 0 <= fit.captured_variance <= 1.001


def test_principal_directions_are_singular_vectors() -> None:
    z = draw(12, 50) * torch.linspace(3, 0.1, 12)[:, None]
    coordinates, directions = principal_components(z, 5)
    u, s, vh = torch.linalg.svd(z, full_matrices=False)
    assert torch.allclose(coordinates @ directions.mT, (u[:, :5] * s[:5]) @ vh[:5], atol=1e-4)
    assert torch.allclose(directions.mT @ directions, torch.eye(5), atol=1e-4)
    assert torch.allclose(coordinates.norm(dim=0), s[:5], atol=1e-3)
    whole, all_directions = principal_components(z[:3].repeat(2, 1), 99)
    assert all_directions.shape == (50, 3) and torch.allclose(whole @ all_directions.mT, z[:3].repeat(2, 1), atol=1e-4)
