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
