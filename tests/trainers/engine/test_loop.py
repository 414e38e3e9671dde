"""The training loop on a problem with a known solution."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hyperbooth.trainers.engine.distributed import ProcessGroup
from hyperbooth.trainers.engine.divergence import Diverged, is_due
from hyperbooth.trainers.engine.ema import EMA
from hyperbooth.trainers.engine.loop import FitConfig, fit
from hyperbooth.trainers.engine.lr_schedule import lr_factor
from hyperbooth.trainers.engine.optimizers import OPTIMIZERS
from hyperbooth.trainers.engine.state import Group, History, TrainState
from torch import nn

FIXED_NOISE = "fixed noise"
"""What the messages call the loss of a divergence check, unlike the training loss."""


def problem() -> tuple[nn.Parameter, Any]:
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    return parameter, lambda batch: [(parameter - 1).square().sum()]


def run(
    losses: Any, parameter: nn.Parameter, rate: float, config: FitConfig, optimizer: str = "sgd", **more: Any
) -> Any:
    state = TrainState([Group([parameter], rate)], optimizer, more.pop("ema_decay", 0.0), more.pop("half", False))
    fit(losses, state, config, **more)
    return state.history


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_finds_the_minimum(optimizer: str, schedule: str) -> None:
    parameter, losses = problem()
    history = run(losses, parameter, 0.1, FitConfig(steps=300, lr_scheduler=schedule, max_grad_norm=0), optimizer)
    assert history.losses[-1] < 0.05 * history.losses[0]
    assert len(history.losses) == history.step == 300


def test_accumulation_is_the_mean_over_its_batches() -> None:
    data = [1.0, 5.0, 2.0, 8.0]

    def ended(accumulation: int, per_batch: int) -> float:
        parameter = nn.Parameter(torch.zeros(1))
        groups = [data[i : i + per_batch] for i in range(0, 4, per_batch)]
        losses = lambda batch: [torch.stack([(parameter - x).square() for x in groups[batch]]).mean()]  # noqa: E731
        run(losses, parameter, 0.1, FitConfig(steps=1, gradient_accumulation=accumulation, max_grad_norm=0))
        return parameter.item()

    assert ended(4, 1) == pytest.approx(ended(1, 4)) == pytest.approx(0.1 * 2 * 4)


def test_terms_of_a_batch_add_up() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    losses = lambda batch: iter([(parameter - 1).square().sum(), 2 * (parameter - 4).square().sum()])  # noqa: E731
    history = run(losses, parameter, 0.01, FitConfig(steps=1, max_grad_norm=0))
    assert history.losses == [1 + 2 * 16]
    assert parameter.item() == pytest.approx(0.01 * (2 * 1 + 2 * 2 * 4))


def test_a_subject_trains_in_a_batch_as_it_does_alone() -> None:
    """With one parameter per subject, losses add up, their mean is shown, and gradients are clipped one by one."""
    goals = torch.tensor([[1.0], [-30.0], [0.1]])

    def ended(goal: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        parameter = nn.Parameter(torch.zeros_like(goal))
        losses = lambda batch: [(parameter - goal).square().sum(1)]  # noqa: E731
        history = run(losses, parameter, 0.1, FitConfig(steps=5, max_grad_norm=1.0, per_subject=True), "adamw")
        return parameter.detach(), history.losses

    together, shown = ended(goals)
    alone = [ended(goals[i : i + 1]) for i in range(3)]
    assert torch.allclose(together, torch.cat([end for end, _ in alone]), rtol=1e-6)
    assert shown == pytest.approx([sum(each) / 3 for each in zip(*(losses for _, losses in alone), strict=True)])


def test_clipping_limits_the_norm_of_the_gradient() -> None:
    parameter, losses = problem()
    before = parameter.detach().clone()
    run(losses, parameter, 1.0, FitConfig(steps=1, max_grad_norm=0.5))
    assert (parameter - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_warmup_and_schedule_set_the_learning_rate() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    places: list[float] = []
    config = FitConfig(steps=8, lr_scheduler="linear", warmup_steps=4, max_grad_norm=0)
    run(lambda b: [parameter.sum()], parameter, 1.0, config, on_step=lambda s: places.append(parameter.item()))
    rates = [a - b for a, b in zip([0.0, *places], places, strict=False)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_step_has_a_learning_rate_above_zero(schedule: str) -> None:
    for steps, warmup in ((1, 0), (1, 1), (5, 3)):
        rates = [lr_factor(step, steps, warmup, schedule) for step in range(steps)]
        assert min(rates) > 0 and max(rates) == 1


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^warmup_steps .*\b50\b.*\b2\b"):
        FitConfig(steps=2, warmup_steps=50)


def broken_gradient(parameter: nn.Parameter, when: range) -> Any:
    """Return a finite loss whose gradient is NaN in the batches ``when``."""

    def losses(batch: int) -> list[torch.Tensor]:
        hidden = parameter * 1.0
        if batch in when:
            hidden.register_hook(lambda gradient: gradient * math.nan)
        return [hidden.sum()]

    return losses


def test_a_nan_gradient_ends_the_run_before_the_update() -> None:
    parameter = nn.Parameter(torch.ones(1))
    with pytest.raises(Diverged, match=r"gradient.*nan.*step 3"):
        run(broken_gradient(parameter, range(2, 3)), parameter, 0.1, FitConfig(steps=3), "adamw")
    assert torch.isfinite(parameter).all()


def test_float16_skips_steps_that_overflow_up_to_a_limit() -> None:
    parameter = nn.Parameter(torch.ones(1))
    history = run(broken_gradient(parameter, range(1, 3)), parameter, 0.1, FitConfig(steps=5), "adamw", half=True)
    assert history.skipped == 2 and torch.isfinite(parameter).all()
    with pytest.raises(Diverged, match=r"gradient.*nan.*step 20"):
        run(broken_gradient(parameter, range(99)), parameter, 0.1, FitConfig(steps=99), "adamw", half=True)


def test_groups_have_their_own_learning_rates() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    state = TrainState([Group([a], 0.1), Group([b], 0.3)], "sgd")
    fit(lambda _: [(a + b).sum()], state, FitConfig(steps=1, max_grad_norm=0))
    assert (a.item(), b.item()) == pytest.approx((-0.1, -0.3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(bad: float) -> None:
    parameter = nn.Parameter(torch.ones(1))
    losses = lambda batch: [parameter.sum() * (bad if batch == 3 else 1.0)]  # noqa: E731
    with pytest.raises(Diverged, match=rf"\bloss\b.*\b{bad}\b.*\bstep 4\b.*\blearning rate\b"):
        run(losses, parameter, 0.1, FitConfig(steps=10), "adamw")
    assert torch.isfinite(parameter).all()


def test_a_run_whose_training_loss_grows_is_stopped() -> None:
    parameter, losses = problem()
    with pytest.raises(Diverged, match=rf"^(?!.*{FIXED_NOISE}).*\bloss\b.*\bstep \d+\b.*\b[\d.]+ times\b"):
        run(losses, parameter, 1.02, FitConfig(steps=4000, max_grad_norm=0))
    assert torch.isfinite(parameter).all()


def test_a_growing_validation_loss_stops_the_run() -> None:
    parameter, losses = problem()
    values = iter([1.0, 1.5, 3.5])
    with pytest.raises(Diverged, match=r"validation loss.*3\.5.*step 4"):
        run(losses, parameter, 0.01, FitConfig(steps=10, validation=2), validate=lambda: next(values))


def test_losses_that_differ_by_noise_level_only_stop_nothing() -> None:
    """Under plain x0, the loss of one step is that of another times e^(+-2)."""
    parameter = nn.Parameter(torch.zeros(1))
    for seed in range(20):
        draws = torch.exp(2 * torch.randn(1000, generator=torch.Generator().manual_seed(seed)))
        history = run(lambda b, d=draws: [d[b] + 0 * parameter.sum()], parameter, 0.1, FitConfig(steps=1000))
        assert history.step == 1000


def test_validation_runs_at_its_steps_on_the_ema() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    seen: list[float] = []
    validate = lambda: seen.append(parameter.item()) or 1.0  # noqa: E731
    config = FitConfig(steps=7, max_grad_norm=0, validation=3)
    history = run(lambda _: [-parameter.sum()], parameter, 1.0, config, validate=validate, ema_decay=0.5)
    assert [step for step, _ in history.validation] == [0, 3, 6, 7]
    assert seen == pytest.approx([0.0, *(exponential_average(0.5, range(1, step + 1)) for step in (3, 6, 7))])
    assert parameter.item() == 7.0


def exponential_average(decay: float, values: Sequence[float]) -> float:
    """Return ``sum_j d^(k-j) v_j / sum_j d^(k-j)``."""
    weights = [decay ** (len(values) - 1 - index) for index in range(len(values))]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999, 0.9999])
def test_the_average_is_over_as_many_steps_as_its_decay_says(decay: float) -> None:
    """All decays above 0.98 gave one and the same average in a run of 500 steps."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    ema = EMA([parameter], decay)
    for step in range(1, 501):
        with torch.no_grad():
            parameter.fill_(step)
        ema.update(step)
    assert ema.values[0].item() == pytest.approx(exponential_average(decay, range(1, 501)), rel=1e-9)


def test_a_diverged_model_is_found_at_the_end_at_the_latest() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    looks: list[int] = []

    def probe() -> float:
        looks.append(round(parameter.item()))
        return 1.0 if parameter.item() < 290 else 3.5

    losses = lambda _: [1 - (parameter - parameter.detach()).sum()]  # noqa: E731
    with pytest.raises(Diverged, match=rf"\b{FIXED_NOISE}\b.*\b3\.5\b.*\bstep 300\b.*\b3\.5\b"):
        run(losses, parameter, 1.0, FitConfig(steps=300, max_grad_norm=0), divergence_check=probe)
    assert looks == [0, 64, 128, 256, 300]


def test_divergence_checks_are_few() -> None:
    assert [step for step in range(1001) if is_due(step, 1000)] == [0, 64, 128, 256, 512, 1000]
    assert [step for step in range(41) if is_due(step, 40)] == [0, 40]


def test_zero_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^steps .*\b0\b"):
        FitConfig(steps=0)


def test_loss_scaling_does_not_change_the_result() -> None:
    def ended(half: bool) -> torch.Tensor:
        parameter, losses = problem()
        run(losses, parameter, 0.05, FitConfig(steps=20), "adamw", half=half)
        return parameter.detach()

    torch.testing.assert_close(ended(True), ended(False))


def test_every_step_is_reported() -> None:
    parameter, losses = problem()
    seen: list[int] = []
    run(losses, parameter, 0.1, FitConfig(steps=5), on_step=lambda state: seen.append(state.history.step))
    assert seen == [1, 2, 3, 4, 5]


def test_a_process_at_another_step_stops() -> None:
    """One of two processes receives only its own step: from the second on, the sum of their steps shows it."""
    parameter, losses = problem()
    with pytest.raises(RuntimeError, match=r"\bprocess 0\b.*\bstep 1\b.*\b2\b.*\b0\.5\b"):
        run(losses, parameter, 0.1, FitConfig(steps=3), processes=ProcessGroup(0, 2))


class Overfitted:
    """A model whose adapter has learned one image by heart, trained further on more images.

    Its loss rises from 0.01 to 0.39, and is 1 without the adapter. The parameter counts the steps.
    """

    def __init__(self) -> None:
        self.parameter, self.off = nn.Parameter(torch.zeros(1)), False

    def loss(self) -> float:
        return 1.0 if self.off else 0.01 if self.parameter.item() < 64 else 0.39

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        self.off = True
        yield
        self.off = False

    def losses(self, _batch: int) -> list[torch.Tensor]:
        return [self.loss() - (self.parameter - self.parameter.detach()).sum()]

    def train(self, **settings: Any) -> History:
        config = FitConfig(steps=300, max_grad_norm=0)
        return run(self.losses, self.parameter, 1.0, config, **settings)


def test_an_overfitted_adapter_trained_on_more_images_does_not_diverge() -> None:
    model = Overfitted()
    settings = {"divergence_check": model.loss, "validate": model.loss, "without_adapter": model.without_adapter}
    assert model.train(**settings).step == 300 and not model.off
    for check in ({}, {"divergence_check": model.loss}):
        model.parameter.data.zero_()
        with pytest.raises(Diverged):
            model.train(**check)


def test_a_run_worse_than_the_plain_model_still_diverges() -> None:
    model = Overfitted()
    model.loss = lambda: 1.0 if model.off else 0.01 + 0.05 * model.parameter.item()  # type: ignore[method-assign]
    with pytest.raises(Diverged, match=rf"\b{FIXED_NOISE}\b.*\bstep \d+\b"):
        model.train(divergence_check=model.loss, without_adapter=model.without_adapter)
    model.parameter.data.zero_()
    with pytest.raises(Diverged, match=rf"^(?!.*{FIXED_NOISE}).*\bloss\b.*\bstep \d+\b"):
        model.train(without_adapter=model.without_adapter)
