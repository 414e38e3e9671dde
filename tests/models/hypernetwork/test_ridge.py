"""Ridge regression against its normal equations, and what it says of itself."""

import pytest
import torch
from hyperbooth.models.hypernetwork.ridge import STRENGTHS, fit_ridge
from torch import Tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_it_minimises_its_objective() -> None:
    """The gradient of ``||Y - XW^T - b||^2 + lambda ||W||^2`` is zero for one lambda of the list, column by column."""
    x, weight = draw(40, 6), draw(3, 6, seed=1)
    y = x @ weight.mT + 0.5 * draw(40, 3, seed=2) + 4
    found = fit_ridge(x, y)
    scaled = ((x - x.mean(0)) / x.std(0)).double()
    unit = torch.linalg.svdvals(scaled).square().mean()
    w = found.weight.double() * x.std(0).double()
    residual = (y - found(x)).double()
    assert torch.allclose(residual.mean(0), torch.zeros(3).double(), atol=1e-5)
    wanted = torch.einsum("pf,pk->kf", scaled, residual)
    strengths = (wanted / w / unit).median(1).values
    for strength, row, column in zip(strengths, wanted, w, strict=True):
        assert min(abs(strength / s - 1) for s in STRENGTHS) < 1e-2
        assert torch.allclose(row, strength * unit * column, atol=1e-4 * scaled.norm())


def test_it_finds_what_is_there_and_leaves_alone_what_is_not() -> None:
    x = draw(400, 20)
    y = torch.stack([x[:, 0] - 2 * x[:, 3], draw(400, seed=1)], 1) + 7
    found = fit_ridge(x, y)
    assert found.left_over[0] < 1e-3 and found.left_over[1] > 0.9
    new = draw(50, 20, seed=2)
    assert torch.allclose(found(new)[:, 0], new[:, 0] - 2 * new[:, 3] + 7, atol=0.05)
    assert (found(new)[:, 1] - y[:, 1].mean()).abs().max() < 0.5


def test_more_features_than_rows() -> None:
    x = draw(30, 200)
    found = fit_ridge(x, x[:, :1])
    assert 0.5 < found.left_over.item() <= 1 and found.weight.isfinite().all()


def test_pictures_of_one_person_are_left_out_together() -> None:
    """Noise that is the same in all pictures of a person foretells them only as long as some are kept."""
    people = draw(25, 30).repeat_interleave(4, 0)
    x, y = people + 0.01 * draw(100, 30, seed=1), draw(25, 1, seed=2).repeat_interleave(4, 0)
    groups = [person for person in range(25) for _ in range(4)]
    assert fit_ridge(x, y).left_over.item() < 0.5
    assert fit_ridge(x, y, groups).left_over.item() > 0.9


def test_one_group_has_nothing_to_be_judged_by() -> None:
    with pytest.raises(ValueError, match="1 groups"):
        fit_ridge(draw(3, 2), draw(3, 1), [5, 5, 5])
