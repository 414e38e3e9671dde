"""Test that Muon's step is along the orthogonal factor for every shape."""

import pytest
import torch
from torch import nn

from tools.small_world.pretraining.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (4, 20), (20, 4)])
def test_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonal(matrices)
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.4
    for matrix, near in zip(matrices, found, strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.nn.functional.cosine_similarity(near.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_a_step_has_the_size_of_adams() -> None:
    torch.manual_seed(0)
    layers = [nn.Parameter(torch.zeros(16, 40)), nn.Parameter(torch.zeros(16, 40)), nn.Parameter(torch.zeros(24, 24))]
    optimizer = Muon(layers, lr=0.01)
    for layer in layers:
        layer.grad = torch.randn_like(layer)
    optimizer.step()
    for layer in layers:
        assert layer.square().mean().sqrt().item() == pytest.approx(0.002, rel=0.25)


def test_it_agrees_with_pytorchs() -> None:
    torch.manual_seed(0)
    start = torch.randn(12, 30)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        Muon([ours], lr=0.01),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        gradient = torch.randn_like(start)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert (ours - theirs).norm() < 0.03 * (ours - start).norm()
