"""The loop on a problem whose answer is known."""

import math

import pytest
import torch
from hyperbooth.trainers.loop import FitConfig, Group, TrainState, fit, rate
from torch import nn


def problem() -> tuple[nn.Parameter, object]:
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    return parameter, lambda batch: [(parameter - 1).square().sum()]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_finds_the_minimum(optimizer: str, schedule: str) -> None:
    parameter, losses = problem()
    state = fit(losses, [Group([parameter], 0.1)], FitConfig(300, optimizer, schedule, max_grad_norm=0))
    assert state.losses[-1] < 0.05 * state.losses[0]
    assert len(state.losses) == state.step == 300


def test_accumulation_is_the_mean_over_its_batches() -> None:
    data = [1.0, 5.0, 2.0, 8.0]

    def run(accumulation: int, per_batch: int) -> float:
        parameter = nn.Parameter(torch.zeros(1))
        groups = [data[i : i + per_batch] for i in range(0, 4, per_batch)]
        losses = lambda batch: [torch.stack([(parameter - x).square() for x in groups[batch]]).mean()]  # noqa: E731
        fit(losses, [Group([parameter], 0.1)], FitConfig(1, "sgd", gradient_accumulation=accumulation, max_grad_norm=0))
        return parameter.item()

    assert run(4, 1) == pytest.approx(run(1, 4)) == pytest.approx(0.1 * 2 * 4)


def test_terms_of_a_batch_add_up() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    losses = lambda batch: iter([(parameter - 1).square().sum(), 2 * (parameter - 4).square().sum()])  # noqa: E731
    state = fit(losses, [Group([parameter], 0.01)], FitConfig(1, "sgd", max_grad_norm=0))
    assert state.losses == [1 + 2 * 16]
    assert parameter.item() == pytest.approx(0.01 * (2 * 1 + 2 * 2 * 4))


def test_clipping_shortens_the_gradient() -> None:
    parameter, losses = problem()
    before = parameter.detach().clone()
    fit(losses, [Group([parameter], 1.0)], FitConfig(1, "sgd", max_grad_norm=0.5))
    assert (parameter - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_warmup_and_schedule_set_the_rate() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    places: list[float] = []
    config = FitConfig(8, "sgd", "linear", warmup_steps=4, max_grad_norm=0)
    fit(lambda b: [parameter.sum()], [Group([parameter], 1.0)], config, lambda s: places.append(parameter.item()))
    rates = [a - b for a, b in zip([0.0, *places], places, strict=False)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_step_has_a_rate_above_zero(schedule: str) -> None:
    for steps, warmup in ((1, 0), (1, 1), (5, 3)):
        rates = [rate(step, FitConfig(steps, lr_scheduler=schedule, warmup_steps=warmup)) for step in range(steps)]
        assert min(rates) > 0 and max(rates) == 1


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_steps is 50 of 2 steps"):
        FitConfig(2, warmup_steps=50)


def broken_gradient(parameter: nn.Parameter, when: range) -> object:
    """A finite loss whose gradient is NaN in the batches ``when``."""

    def losses(batch: int) -> list[torch.Tensor]:
        hidden = parameter * 1.0
        if batch in when:
            hidden.register_hook(lambda gradient: gradient * math.nan)
        return [hidden.sum()]

    return losses


def test_a_gradient_that_is_no_number_ends_the_run_before_it_reaches_the_parameters_file() -> None:
    parameter = nn.Parameter(torch.ones(1))
    with pytest.raises(FloatingPointError, match="the gradient is nan at step 3"):
        fit(broken_gradient(parameter, range(2, 3)), [Group([parameter], 0.1)], FitConfig(3))


def test_float16_skips_a_step_out_of_range_and_says_so_but_not_for_ever() -> None:
    parameter = nn.Parameter(torch.ones(1))
    state = fit(broken_gradient(parameter, range(1, 3)), [Group([parameter], 0.1)], FitConfig(5, half=True))
    assert state.skipped == 2 and torch.isfinite(parameter).all()
    with pytest.raises(FloatingPointError, match="the gradient is nan at step 20"):
        fit(broken_gradient(parameter, range(99)), [Group([parameter], 0.1)], FitConfig(99, half=True))


def test_groups_have_their_own_rates() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    fit(lambda _: [(a + b).sum()], [Group([a], 0.1), Group([b], 0.3)], FitConfig(1, "sgd", max_grad_norm=0))
    assert (a.item(), b.item()) == pytest.approx((-0.1, -0.3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_try(bad: float) -> None:
    parameter = nn.Parameter(torch.ones(1))
    losses = lambda batch: [parameter.sum() * (bad if batch == 3 else 1.0)]  # noqa: E731
    with pytest.raises(FloatingPointError, match=r"step 4.*lower learning rate"):
        fit(losses, [Group([parameter], 0.1)], FitConfig(10))
    assert torch.isfinite(parameter).all()


def test_zero_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        FitConfig(0)


def test_loss_scaling_changes_nothing_but_the_range() -> None:
    def run(half: bool) -> torch.Tensor:
        parameter, losses = problem()
        fit(losses, [Group([parameter], 0.05)], FitConfig(20, half=half))
        return parameter.detach()

    torch.testing.assert_close(run(True), run(False))


def test_every_step_is_reported() -> None:
    parameter, losses = problem()
    seen: list[int] = []

    def note(state: TrainState) -> None:
        seen.append(state.step)

    fit(losses, [Group([parameter], 0.1)], FitConfig(5), note)
    assert seen == [1, 2, 3, 4, 5]
