"""The one training loop. It knows parameters and losses, nothing of networks, adapters or pictures."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MOST_SKIPPED = 20
"""Updates that float16 may skip in a row: the scale halves each time, from 2^12 to below 1."""

_BROKEN = (
    "the {what} is {value} at step {step}: nothing was saved. Try a lower learning rate, "
    "or precision bfloat16 or float32 in Training Options"
)

FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices with a fused AdamW: one kernel for all of an adapter's hundreds of small parameters."""

Losses = Callable[[int], Iterable[Tensor]]
"""Batch number -> the batch's loss terms, scalars, each made when it is asked for and freed after its backward."""


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float


@dataclass(frozen=True)
class FitConfig:
    """Settings of the loop; see :class:`.options.TrainingOptions` for the meaning of each.

    Args:
        steps: optimiser updates.
        half: gradients pass through float16, whose range needs the loss scaled.
    """

    steps: int
    optimizer: str = "adamw"
    lr_scheduler: str = "constant"
    warmup_steps: int = 0
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    half: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; give at least 1")
        if self.warmup_steps >= max(2, self.steps):
            raise ValueError(f"warmup_steps is {self.warmup_steps} of {self.steps} steps; give fewer")


@dataclass
class TrainState:
    """Where a run stands: steps done, the loss of each, and how many updates float16's range made impossible."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0


OnStep = Callable[[TrainState], None]


def fit(losses: Losses, groups: Sequence[Group], config: FitConfig, on_step: OnStep | None = None) -> TrainState:
    """Minimise the sum of ``losses(batch)`` over ``groups``.

    The terms of a batch go backward one after another, so that memory holds one term's activations at a time.

    Raises:
        FloatingPointError: the loss is NaN or infinite; the message names the step and what to try.
    """
    state = TrainState()
    parameters = [parameter for group in groups for parameter in group.parameters]
    optimizer = _optimizer(groups, config)
    schedule = _schedule(optimizer, config)
    scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=config.half, init_scale=2.0**12)
    while state.step < config.steps:
        optimizer.zero_grad(set_to_none=True)
        state.losses.append(_accumulate(losses, state.step, config, scaler))
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf).item()
        scaler.step(optimizer)
        scaler.update()
        _count_skipped(state, norm, config)
        schedule.step()
        state.step += 1
        if on_step is not None:
            on_step(state)
    return state


def _count_skipped(state: TrainState, norm: float, config: FitConfig) -> None:
    """A gradient that is no number ends the run; in float16 the step is skipped first, while the scale is searched."""
    if math.isfinite(norm):
        state.skipped_in_a_row = 0
        return
    state.skipped += 1
    state.skipped_in_a_row += 1
    if not config.half or state.skipped_in_a_row >= MOST_SKIPPED:
        raise FloatingPointError(_BROKEN.format(what="gradient", value=norm, step=state.step + 1))


def _accumulate(losses: Losses, step: int, config: FitConfig, scaler: torch.amp.GradScaler) -> float:
    """Backward through one step's batches; their mean loss."""
    total = 0.0
    batches = config.gradient_accumulation
    for batch in range(step * batches, (step + 1) * batches):
        for loss in losses(batch):
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(_BROKEN.format(what="loss", value=value, step=step + 1))
            scaler.scale(loss / batches).backward()
            total += value / batches
    return total


def _optimizer(groups: Sequence[Group], config: FitConfig) -> torch.optim.Optimizer:
    settings: list[dict[str, Any]] = [{"params": list(g.parameters), "lr": g.learning_rate} for g in groups]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=0.0)
    fused = all(parameter.device.type in FUSED for group in groups for parameter in group.parameters)
    return torch.optim.AdamW(settings, lr=0.0, weight_decay=1e-2, fused=fused)


def _schedule(optimizer: torch.optim.Optimizer, config: FitConfig) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, config=config))


def rate(step: int, config: FitConfig) -> float:
    """Share of the learning rate for step ``step`` (from 0): rises as ``(k + 1) / warmup``, then follows the schedule.

    Written here because transformers' schedules give the first step a rate of zero and waste it.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    past = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return {"constant": 1.0, "linear": 1 - past, "cosine": (1 + math.cos(math.pi * past)) / 2}[config.lr_scheduler]
