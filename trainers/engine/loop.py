"""The training loop. It depends on parameters and losses, not on networks, adapters or images."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .distributed import SINGLE, ProcessGroup
from .divergence import (
    DIVERGENCE_FACTOR,
    WINDOW,
    Reference,
    check_finite,
    check_fixed_noise_losses,
    check_training_losses,
    is_due,
)
from .grad_clip import clip_gradients
from .lr_schedule import lr_factor
from .state import TrainState

MOST_SKIPPED = 20
"""Updates that float16 may skip in a row: the scale halves each time, from 2^12 to below 1."""

Losses = Callable[[int], Iterable[Tensor]]
"""Batch number -> the batch's loss terms, each computed when it is asked for and freed after its backward: a scalar, or
one value for each of several subjects trained in one batch ``[subjects]``."""
OnStep = Callable[[TrainState], None]
"""Called with the state after every step."""
Measure = Callable[[], float]
"""Returns a loss that differs only as the parameters do."""
WithoutAdapter = Callable[[], AbstractContextManager[None]]
"""Returns a context in which the model is without the adapter."""


class LoopOptions(Protocol):
    """The part of :class:`trainers.config.TrainingOptions` that the loop takes."""

    lr_scheduler: str
    warmup_steps: int
    gradient_accumulation: int
    max_grad_norm: float
    validation: int

    @property
    def divergence_factor(self) -> float:
        """How many times the first losses the last ones may be."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of the loop.

    Args:
        steps: optimizer updates.
        lr_scheduler: learning-rate schedule after the warm-up, one of :data:`.lr_schedule.SCHEDULES`.
        warmup_steps: updates over which the learning rate rises.
        gradient_accumulation: batches per update.
        max_grad_norm: largest gradient norm, 0 for no clipping.
        validation: steps between validations, 0 for none.
        divergence_factor: how many times the first losses the last ones may be, see :mod:`.divergence`.
        per_subject: the losses are those of several subjects trained in one batch; each subject's gradient is clipped
            by itself, see :func:`.grad_clip.clip_gradients`.
    """

    steps: int
    lr_scheduler: str = "constant"
    warmup_steps: int = 0
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    validation: int = 0
    divergence_factor: float = DIVERGENCE_FACTOR
    per_subject: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; give at least 1")
        if self.warmup_steps >= max(2, self.steps):
            raise ValueError(f"warmup_steps is {self.warmup_steps} of {self.steps} steps; give fewer")

    @classmethod
    def from_options(cls, options: LoopOptions, *, steps: int, per_subject: bool = False) -> "FitConfig":
        """Return the loop's settings under the user's options.

        Args:
            options: the user's options.
            steps: optimizer updates of the run.
            per_subject: the loss has one value per subject, see :func:`.grad_clip.clip_gradients`.
        """
        return cls(
            steps=steps,
            lr_scheduler=options.lr_scheduler,
            warmup_steps=options.warmup_steps,
            gradient_accumulation=options.gradient_accumulation,
            max_grad_norm=options.max_grad_norm,
            validation=options.validation,
            divergence_factor=options.divergence_factor,
            per_subject=per_subject,
        )


def fit(
    losses: Losses,
    state: TrainState,
    config: FitConfig,
    *,
    on_step: OnStep | None = None,
    validate: Measure | None = None,
    divergence_check: Measure | None = None,
    without_adapter: WithoutAdapter | None = None,
    processes: ProcessGroup = SINGLE,
) -> None:
    """Train ``state`` up to ``config.steps``, minimizing the sum of ``losses(batch)``.

    The terms of a batch go backward one after another, so that memory holds one term's activations at a time. The
    state changes only between the steps: after an exception it is that of the last completed step.

    Args:
        losses: the loss terms of a batch.
        state: what is trained; training continues from its step.
        config: settings of the loop.
        on_step: called after every step.
        validate: measures a loss on fixed noise: before the first step, every ``config.validation`` steps, at the end.
        divergence_check: measures a cheaper one, when :func:`.divergence.is_due`.
        without_adapter: context in which the model is without what is trained: a second reference of these checks.
        processes: those that take the same steps at the same time, each with its part of every batch's loss.

    Raises:
        Diverged: the loss or gradient is NaN or infinite, or the loss has grown beyond ``config.divergence_factor``;
            the message names the step and what to try.
        RuntimeError: the processes are at different steps.
    """
    plain = _PlainModel(losses, config.gradient_accumulation, without_adapter)
    _measure_if_due(state, config, validate, divergence_check, plain)
    while state.history.step < config.steps:
        _step(losses, state, config, processes)
        _measure_if_due(state, config, validate, divergence_check, plain)
        check_training_losses(state.history.losses, config.divergence_factor, plain.training_losses(state.history.step))
        if on_step is not None:
            on_step(state)


@dataclass
class _PlainModel:
    """Losses of the model without the adapter, measured when a check asks for them.

    Args:
        losses: the loss terms of a batch.
        batches: per step.
        without_adapter: see :func:`fit`.
    """

    losses: Losses
    batches: int
    without_adapter: WithoutAdapter | None
    _median: float | None = None

    def training_losses(self, step: int) -> Reference | None:
        """Return what measures the median loss of the last :data:`WINDOW` steps before ``step``, once for a run."""
        if self.without_adapter is None:
            return None

        def measure() -> float:
            if self._median is None:
                with self.without_adapter(), torch.no_grad():
                    self._median = statistics.median(map(self._loss, range(max(0, step - WINDOW), step)))
            return self._median

        return measure

    def fixed_noise(self, measure: Measure) -> Reference | None:
        """Return what measures a loss on fixed noise."""
        if self.without_adapter is None:
            return None

        def reference() -> float:
            with self.without_adapter():
                return measure()

        return reference

    def _loss(self, step: int) -> float:
        batches = range(step * self.batches, (step + 1) * self.batches)
        return sum(loss.mean().item() for batch in batches for loss in self.losses(batch)) / self.batches


def _step(losses: Losses, state: TrainState, config: FitConfig, processes: ProcessGroup) -> None:
    history = state.history
    state.optimizer.zero_grad(set_to_none=True)
    loss = _all_reduce(_accumulate(losses, state, config), state, processes)
    check_finite("loss", loss, history.step + 1)
    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.parameters, config.max_grad_norm, config.per_subject)
    _count_skipped(state, norm)
    state.scale_learning_rates(lr_factor(history.step, config.steps, config.warmup_steps, config.lr_scheduler))
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    history.losses.append(loss)
    history.step += 1
    if state.ema is not None:
        state.ema.update(history.step)


def _accumulate(losses: Losses, state: TrainState, config: FitConfig) -> float:
    """Backpropagate through one step's batches and return their mean loss.

    Losses of several subjects are summed for backward, so that each subject's gradient is its own; the mean is for the
    history.
    """
    total = 0.0
    step, batches = state.history.step, config.gradient_accumulation
    for batch in range(step * batches, (step + 1) * batches):
        for loss in losses(batch):
            value = loss.mean().item()
            scaled = state.scaler.scale(loss.sum() / batches)
            if scaled.requires_grad:
                scaled.backward()
            total += value / batches
    _zero_if_unreached(state.parameters)
    return total


def _all_reduce(loss: float, state: TrainState, processes: ProcessGroup) -> float:
    """Sum loss and gradients over the processes, before any of them decides anything by its own."""
    step = state.history.step
    loss, steps = processes.all_reduce_scalars(loss, step)
    if steps != processes.world_size * step:
        where = f"the {processes.world_size} of them at {steps / processes.world_size:g} on average"
        raise RuntimeError(f"process {processes.rank} is at step {step}, {where}")
    processes.all_reduce_([parameter.grad for parameter in state.parameters if parameter.grad is not None])
    return loss


def _zero_if_unreached(parameters: Sequence[nn.Parameter]) -> None:
    """Set the gradients to zero if no loss term reached any parameter.

    That happens when an embedding trains and every prompt of the batch was dropped. A single parameter without a
    gradient is one that no loss ever reaches; it is left out of the update, like those that require no gradient.
    """
    if all(parameter.grad is None for parameter in parameters):
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)


def _count_skipped(state: TrainState, norm: float) -> None:
    """End the run if the gradient is NaN or infinite; in float16 skip steps first, while the loss scale is searched."""
    history = state.history
    if math.isfinite(norm):
        history.skipped_in_a_row = 0
        return
    if not state.scaler.is_enabled() or history.skipped_in_a_row + 1 >= MOST_SKIPPED:
        check_finite("gradient", norm, history.step + 1)
    history.skipped += 1
    history.skipped_in_a_row += 1


def _measure_if_due(
    state: TrainState,
    config: FitConfig,
    validate: Measure | None,
    divergence_check: Measure | None,
    plain: _PlainModel,
) -> None:
    """Measure the validation loss and the divergence check where they are due, and check them.

    Args:
        state: what is trained.
        config: steps and validation interval.
        validate: measures the validation loss.
        divergence_check: measures the loss on fixed noise.
        plain: the model without the adapter.
    """
    step, last = state.history.step, state.history.step == config.steps
    if config.validation and (step % config.validation == 0 or last):
        _measure("validation loss", state, state.history.validation, validate, plain)
    if is_due(step, config.steps):
        _measure("loss on fixed noise", state, state.history.divergence_checks, divergence_check, plain)


def _measure(
    what: str, state: TrainState, record: list[tuple[int, float]], measure: Measure | None, plain: _PlainModel
) -> None:
    if measure is None or any(step == state.history.step for step, _ in record):
        return
    with state.result():
        record.append((state.history.step, measure()))
    check_fixed_noise_losses(what, record, plain.fixed_noise(measure))
