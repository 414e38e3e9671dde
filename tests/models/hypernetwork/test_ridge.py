"""Ridge regression against its normal equations, and its cross-validated unexplained variance."""

import pytest
import torch
from hyperbooth.models.hypernetwork.ridge import STRENGTHS, _weights, fit_ridge
from torch import Tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_it_minimizes_its_objective() -> None:
    """The gradient of ``||Y - XW^T - b||^2 + lambda ||W||^2`` is zero for one lambda of the list, column by column."""
    x, weight = draw(40, 6), draw(3, 6, seed=1)
    y = x @ weight.mT + 0.5 * draw(40, 3, seed=2) + 4
    fit = fit_ridge(x, y)
    scaled = ((x - x.mean(0)) / x.std(0)).double()
    unit = torch.linalg.svdvals(scaled).square().mean()
    w = fit.weight.double() * x.std(0).double()
    residual = (y - fit(x)).double()
    assert torch.allclose(residual.mean(0), torch.zeros(3).double(), atol=1e-5)
    wanted = torch.einsum("pf,pk->kf", scaled, residual)
    strengths = (wanted / w / unit).median(1).values
    for strength, row, column in zip(strengths, wanted, w, strict=True):
        assert min(abs(strength / s - 1) for s in STRENGTHS) < 1e-2
        assert torch.allclose(row, strength * unit * column, atol=1e-4 * scaled.norm())


def test_it_predicts_what_depends_on_features_and_takes_the_mean_of_what_does_not() -> None:
    x = draw(400, 20)
    y = torch.stack([x[:, 0] - 2 * x[:, 3], draw(400, seed=1)], 1) + 7
    fit = fit_ridge(x, y)
    assert fit.unexplained_variance[0] < 1e-3 and fit.unexplained_variance[1] > 0.9
    new = draw(50, 20, seed=2)
    assert torch.allclose(fit(new)[:, 0], new[:, 0] - 2 * new[:, 3] + 7, atol=0.05)
    assert (fit(new)[:, 1] - y[:, 1].mean()).abs().max() < 0.5


def test_more_features_than_rows() -> None:
    x = draw(30, 200)
    fit = fit_ridge(x, x[:, :1])
    assert 0.5 < fit.unexplained_variance.item() <= 1 and fit.weight.isfinite().all()


def test_images_of_one_subject_are_held_out_together() -> None:
    """Noise common to all images of a subject predicts its targets only if some of the images are fitted on."""
    subjects = draw(25, 30).repeat_interleave(4, 0)
    x, y = subjects + 0.01 * draw(100, 30, seed=1), draw(25, 1, seed=2).repeat_interleave(4, 0)
    groups = [subject for subject in range(25) for _ in range(4)]
    assert fit_ridge(x, y).unexplained_variance.item() < 0.5
    assert fit_ridge(x, y, groups).unexplained_variance.item() > 0.9


def test_one_group_cannot_be_cross_validated() -> None:
    with pytest.raises(ValueError, match="1 groups"):
        fit_ridge(draw(3, 2), draw(3, 1), [5, 5, 5])


def test_features_that_are_all_alike_predict_the_mean() -> None:
    """Their regression is zero, not NaN."""
    for count in (6, 3):
        rows = [*_weights(torch.ones(count, 5), torch.arange(2.0 * count).view(count, 2))]
        assert len(rows) == len(STRENGTHS) and all(torch.isfinite(weight).all() and not weight.any() for weight in rows)
