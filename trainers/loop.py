"""The one training loop. It knows parameters and losses, nothing of networks, adapters or pictures."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

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


@dataclass
class TrainState:
    """Where a run stands: steps done and the loss of each."""

    step: int = 0
    losses: list[float] = field(default_factory=list)


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
        if config.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        state.step += 1
        if on_step is not None:
            on_step(state)
    return state


def _accumulate(losses: Losses, step: int, config: FitConfig, scaler: torch.amp.GradScaler) -> float:
    """Backward through one step's batches; their mean loss."""
    total = 0.0
    batches = config.gradient_accumulation
    for batch in range(step * batches, (step + 1) * batches):
        for loss in losses(batch):
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} at step {step + 1}: nothing was saved. Try a lower learning rate, "
                    "or precision bfloat16 or float32 in Training Options"
                )
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
    from transformers import get_scheduler

    name = "constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler
    return get_scheduler(name, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=config.steps)
