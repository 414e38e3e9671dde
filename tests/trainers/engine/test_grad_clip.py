"""Gradient clipping, of all parameters together and per subject."""

import pytest
import torch
from hyperbooth.trainers.engine.grad_clip import clip_gradients
from torch import Tensor, nn


def parameters(*gradients: Tensor) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = gradient.clone()
    return made


SUBJECTS = 3
SIZES = torch.tensor([0.01, 1.0, 50.0])
DRAW = torch.Generator().manual_seed(0)
GRADIENTS = [
    SIZES[:, None, None] * torch.randn(3, 4, 2, generator=DRAW),
    SIZES[:, None] * torch.randn(3, 5, generator=DRAW),
]


def test_per_subject_clipping_equals_clipping_each_subject_alone() -> None:
    together = parameters(*GRADIENTS)
    longest = clip_gradients(together, 1.0, per_subject=True)
    norms = []
    for i in range(SUBJECTS):
        alone = parameters(*(gradient[i] for gradient in GRADIENTS))
        norms.append(clip_gradients(alone, 1.0))
        for one, beside in zip(alone, together, strict=True):
            assert torch.allclose(beside.grad[i], one.grad, rtol=1e-6)
    assert longest == pytest.approx(max(norms))
    assert norms[0] < 1 < norms[2]


def test_global_clipping_uses_the_norm_of_all() -> None:
    given = parameters(*GRADIENTS)
    norm = clip_gradients(given, 1.0)
    assert torch.cat([p.grad.flatten() for p in given]).norm().item() == pytest.approx(1, rel=1e-4)
    assert given[0].grad[0].norm() < 0.1 * GRADIENTS[0][0].norm() and norm > 50


@pytest.mark.parametrize("apart", [False, True])
def test_a_max_norm_of_zero_only_measures(apart: bool) -> None:
    given = parameters(*GRADIENTS)
    assert clip_gradients(given, 0.0, apart) > 1
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(given, GRADIENTS, strict=True))


def test_parameters_without_gradient_are_left_out() -> None:
    given = [*parameters(*GRADIENTS), nn.Parameter(torch.zeros(2, 2))]
    assert clip_gradients(given, 1.0, per_subject=True) == pytest.approx(
        clip_gradients(parameters(*GRADIENTS), 0.0, per_subject=True)
    )
    assert given[-1].grad is None


def test_nan_in_one_subject_is_reported_and_changes_no_other_subject() -> None:
    broken = [gradient.clone() for gradient in GRADIENTS]
    broken[0][1, 0, 0] = torch.nan
    given = parameters(*broken)
    assert clip_gradients(given, 1.0, per_subject=True) != clip_gradients(given, 1.0, per_subject=True)
    whole = parameters(*GRADIENTS)
    clip_gradients(whole, 1.0, per_subject=True)
    for one, other in zip(given, whole, strict=True):
        assert torch.allclose(one.grad[[0, 2]], other.grad[[0, 2]])
