"""The divergence check of a batch of subjects."""

import pytest
import torch
from hyperbooth.trainers.engine.divergence import Diverged, check_fixed_noise_losses
from hyperbooth.trainers.subject_bank.trainer import _worst_loss


def test_the_divergence_check_measures_the_worst_subject() -> None:
    """Fifteen subjects that train do not hide one that diverged."""
    first = torch.full((16,), 0.1)
    last = torch.where(torch.arange(16) == 7, 30.0, 0.8) * first
    measured_losses: list[torch.Tensor] = []
    measured = [(step, _worst_loss(measured_losses, losses, first)) for step, losses in ((0, first), (64, last))]
    assert measured == [(0, pytest.approx(0.1)), (64, pytest.approx(3.0))]
    assert last.mean() < 3 * first.mean()
    with pytest.raises(Diverged):
        check_fixed_noise_losses("loss on fixed noise", measured)
    assert torch.equal(measured_losses[-1], last)


def test_a_subject_whose_start_is_overfitted_is_compared_with_the_plain_model() -> None:
    """The common start gave 0.01; without adapters the loss is 1, and the subject's own 0.4 is no divergence."""
    plain, start, now = torch.ones(2), torch.full((2,), 0.01), torch.tensor([0.4, 0.2])
    measured_losses: list[torch.Tensor] = []
    measured = [(step, _worst_loss(measured_losses, losses, plain)) for step, losses in ((0, start), (64, now))]
    check_fixed_noise_losses("loss on fixed noise", [(0, 1.0), measured[1]])
    assert measured[1][1] == pytest.approx(0.4)
