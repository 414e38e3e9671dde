"""Test that a stopped pretraining resumes with the same result."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools.small_world.pretraining import loop
from tools.small_world.pretraining.loop import Plan, Training

PLAN = Plan(steps=20, rate=1e-2, warmup=4, average=0.9)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 24), nn.BatchNorm1d(24), nn.Linear(24, 20), nn.Linear(20, 1))


def run(path: Path, stop: int | None = None) -> dict[str, Tensor]:
    module = network()

    def loss_of(step: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    return {name: t.clone() for name, t in Training(module, PLAN, path).run(loss_of).state_dict().items()}


def test_stopped_and_resumed_it_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    whole = run(tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts.safetensors", stop=11)
    resumed = run(tmp_path / "parts.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_a_finished_one_is_only_read(tmp_path: Path) -> None:
    whole = run(tmp_path / "a.safetensors")
    again = run(tmp_path / "a.safetensors", stop=0)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    training = Training(network(), PLAN, tmp_path / "a.safetensors")
    with pytest.raises(FloatingPointError, match="the loss at step 0 is nan"):
        training.run(lambda step: torch.tensor(torch.nan))
    assert not (tmp_path / "a.safetensors").exists()


def test_the_rate_rises_and_falls() -> None:
    rates = [PLAN.rate_at(step) for step in range(PLAN.steps)]
    assert max(rates) <= PLAN.rate and rates.index(max(rates)) in (3, 4)
    assert rates[0] > 0 and 0 < rates[-1] < 0.05 * PLAN.rate
