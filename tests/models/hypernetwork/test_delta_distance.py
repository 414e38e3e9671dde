"""Distances between weight changes against explicit products in float64."""

import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.hypernetwork.delta_distance import MAX_SUBJECTS, LayerDeltas, delta_distance, delta_variance
from torch import Tensor

TARGETS = [
    Target("diffusion_model.a.to_q", (12, 9)), Target("diffusion_model.b.conv", (8, 3, 3, 3)),
    Target("diffusion_model.c.to_q", (12, 9)), Target("diffusion_model.d.to_q", (4, 3)),
]  # fmt: skip


def layout(rank: int) -> ParameterLayout:
    return ParameterLayout.of(Adapter.create("lidb", TARGETS, LiDBConfig(rank=rank, a=7, b=5), torch.Generator()))


def thetas(rank: int, count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, layout(rank).parameter_count, generator=torch.Generator().manual_seed(seed))


def products_of(theta: Tensor, rank: int) -> Tensor:
    """Return all products A B of each row, concatenated, in float64."""
    parts = layout(rank).unflatten(theta.double())
    return torch.cat([(p["a_train"] @ p["b_train"]).flatten(-2) for p in parts.values()], -1)


@pytest.mark.parametrize("rank", [1, 3])
def test_factors_are_parts_of_the_layout(rank: int) -> None:
    split, theta = LayerDeltas(layout(rank)), thetas(rank)
    factors, parts = split(theta), layout(rank).unflatten(theta)
    assert [tuple(a.shape[1:]) for a, _ in factors] == [(3, 7, rank), (1, 4, min(rank, 3))]
    assert factors[0][0][:, 2].equal(parts["diffusion_model.c.to_q"]["a_train"])
    assert factors[1][1][:, 0].equal(parts["diffusion_model.d.to_q"]["b_train"])


@pytest.mark.parametrize("rank", [1, 3])
def test_distance_equals_that_of_the_products(rank: int) -> None:
    split, first, second = LayerDeltas(layout(rank)), thetas(rank), thetas(rank, seed=1)
    expected = (products_of(first, rank) - products_of(second, rank)).square().sum(-1)
    found = delta_distance(split(first), split(second))
    assert torch.allclose(found.double(), expected, rtol=1e-5)
    near = first + 1e-4 * second
    expected = (products_of(near, rank) - products_of(first, rank)).square().sum(-1)
    assert torch.allclose(delta_distance(split(near), split(first)).double(), expected, rtol=1e-3)
    assert delta_distance(split(first), split(first)).equal(torch.zeros(6))


def test_distance_of_a_batch_to_one_subject_and_its_gradient() -> None:
    split, one = LayerDeltas(layout(2)), thetas(2, 1, 3)[0]
    theta = thetas(2).double().requires_grad_()
    delta_distance(split(theta), split(one.double())).sum().backward()
    again = theta.detach().clone().requires_grad_()
    (products_of(again, 2) - products_of(one, 2)).square().sum().backward()
    assert torch.allclose(theta.grad, again.grad)


@pytest.mark.parametrize("rank", [1, 3])
def test_variance_equals_that_of_the_products(rank: int) -> None:
    theta = thetas(rank, 9) + 3
    products = products_of(theta, rank)
    expected = (products - products.mean(0)).square().sum(-1).mean()
    assert torch.allclose(delta_variance(LayerDeltas(layout(rank))(theta)), expected)
    alike = theta[:1].expand(MAX_SUBJECTS + 1, -1)
    assert delta_variance(LayerDeltas(layout(rank))(alike)) < 1e-9 * products[0].square().sum()
