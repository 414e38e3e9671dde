"""Subjects side by side: what the guard sees of a batch."""

import pytest
import torch
from hyperbooth.trainers.engine.divergence import Diverged, check_fixed_noise_losses
from hyperbooth.trainers.subject_bank.trainer import _seen


def test_the_guard_sees_the_subject_that_fares_worst() -> None:
    """Fifteen that learn do not hide one that is ruined: alone it would be left out, and so it is among them."""
    first = torch.full((16,), 0.1)
    last = torch.where(torch.arange(16) == 7, 30.0, 0.8) * first
    looks: list[torch.Tensor] = []
    measured = [(step, _seen(looks, losses)) for step, losses in ((0, first), (64, last))]
    assert measured == [(0, pytest.approx(0.1)), (64, pytest.approx(3.0))]
    assert last.mean() < 3 * first.mean()
    with pytest.raises(Diverged):
        check_fixed_noise_losses("loss on fixed noise", measured)
    assert torch.equal(looks[-1], last)
