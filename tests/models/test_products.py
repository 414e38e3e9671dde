"""Distances in product space against the literal products in float64, and one gauge for all."""

import pytest
import torch
from hyperbooth.models.adapter_set import Link
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.layout import Layout
from hyperbooth.models.products import MOST, Splitter, balanced, product_distance, product_variance
from hyperbooth.models.targets import Target
from torch import Tensor

TARGETS = [
    Target("diffusion_model.a.to_q", (12, 9)), Target("diffusion_model.b.conv", (8, 3, 3, 3)),
    Target("diffusion_model.c.to_q", (12, 9)), Target("diffusion_model.d.to_q", (4, 3)),
]  # fmt: skip


def layout(rank: int) -> Layout:
    return Layout.of(Link.create("lidb", TARGETS, LiDBConfig(rank, 7, 5), torch.Generator()))


def people(rank: int, count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, layout(rank).numbers, generator=torch.Generator().manual_seed(seed))


def literal(theta: Tensor, rank: int) -> Tensor:
    """All products of a row, one after the other, in float64."""
    parts = layout(rank).parts(theta.double())
    return torch.cat([(p["a_train"] @ p["b_train"]).flatten(-2) for p in parts.values()], -1)


@pytest.mark.parametrize("rank", [1, 3])
def test_factors_are_the_layouts_parts(rank: int) -> None:
    split, theta = Splitter(layout(rank)), people(rank)
    factors, parts = split(theta), layout(rank).parts(theta)
    assert [tuple(a.shape[1:]) for a, _ in factors] == [(3, 7, rank), (1, 4, min(rank, 3))]
    assert factors[0][0][:, 2].equal(parts["diffusion_model.c.to_q"]["a_train"])
    assert factors[1][1][:, 0].equal(parts["diffusion_model.d.to_q"]["b_train"])
    assert split.joined(factors).equal(theta)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_distance_is_that_of_the_products(rank: int) -> None:
    split, first, second = Splitter(layout(rank)), people(rank), people(rank, seed=1)
    expected = (literal(first, rank) - literal(second, rank)).square().sum(-1)
    found = product_distance(split(first), split(second))
    assert torch.allclose(found.double(), expected, rtol=1e-5)
    near = first + 1e-4 * second
    expected = (literal(near, rank) - literal(first, rank)).square().sum(-1)
    assert torch.allclose(product_distance(split(near), split(first)).double(), expected, rtol=1e-3)
    assert product_distance(split(first), split(first)).equal(torch.zeros(6))


def test_a_distance_to_one_for_all_and_its_gradient() -> None:
    split, one = Splitter(layout(2)), people(2, 1, 3)[0]
    theta = people(2).double().requires_grad_()
    product_distance(split(theta), split(one.double())).sum().backward()
    again = theta.detach().clone().requires_grad_()
    (literal(again, 2) - literal(one, 2)).square().sum().backward()
    assert torch.allclose(theta.grad, again.grad)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_variance_is_that_of_the_products(rank: int) -> None:
    theta = people(rank, 9) + 3
    products = literal(theta, rank)
    expected = (products - products.mean(0)).square().sum(-1).mean()
    assert torch.allclose(product_variance(Splitter(layout(rank))(theta)), expected)
    alike = theta[:1].expand(MOST + 1, -1)
    assert product_variance(Splitter(layout(rank))(alike)) < 1e-9 * products[0].square().sum()


@pytest.mark.parametrize("rank", [1, 3])
def test_one_gauge_for_equal_products(rank: int) -> None:
    """``(A G, G^-1 B)`` of any G, c = -1 at rank 1 among them, comes out as the same numbers."""
    split, theta = Splitter(layout(rank)), people(rank, 2)
    like = split(people(rank, 1, 5)[0])
    other = []
    for a, b in split(theta):
        r = a.shape[-1]
        mix = -2 * torch.eye(r) + 0.3 * torch.randn(r, r, generator=torch.Generator().manual_seed(7))
        other.append((a @ mix, torch.linalg.solve(mix, b)))
    ours, theirs = split.joined(balanced(split(theta), like)), split.joined(balanced(other, like))
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(literal(ours, rank), literal(theta, rank), atol=1e-4)
    for a, b in balanced(split(theta), like):
        assert torch.allclose(a.mT @ a, b @ b.mT, atol=1e-4)


def test_the_gauge_is_the_nearest_to_what_it_is_to_be_like() -> None:
    split, theta = Splitter(layout(1)), people(1, 4)
    like = split(people(1, 1, 5)[0])
    for (a, b), (a0, b0) in zip(balanced(split(theta), like), like, strict=True):
        far = (a - a0).square().sum((-2, -1)) + (b - b0).square().sum((-2, -1))
        assert (far <= (a + a0).square().sum((-2, -1)) + (b + b0).square().sum((-2, -1))).all()
    assert split.joined(balanced(split(torch.zeros_like(theta)), like)).abs().max() == 0
