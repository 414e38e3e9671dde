"""The optimizers, and the course of the learning rate."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version

Settings = Sequence[dict[str, Any]]
"""PyTorch's parameter groups: ``params`` and ``lr`` each."""

FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices with a fused AdamW: one kernel for all of an adapter's hundreds of small parameters."""


def _adamw(groups: Settings) -> torch.optim.Optimizer:
    """Decoupled weight decay (1711.05101); two numbers of state per weight."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.device.type in FUSED for parameter in parameters)
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2, fused=fused)
    if fused:  # which writes without telling autograd; what is computed once for each value of a parameter must know
        optimizer.register_step_post_hook(lambda *_: increment_version(parameters))
    return optimizer


def _adafactor(groups: Settings) -> torch.optim.Optimizer:
    """Second moments as an outer product of rows and columns (1804.04235): next to no state for a matrix.

    The paper makes steps relative to a parameter's size; a change that starts at zero has none, so that the least
    size is set to 1: steps are the learning rate's own, and AdamW's rates carry over.
    """
    return torch.optim.Adafactor(groups, eps=(None, 1.0), weight_decay=0.0)


def _sgd(groups: Settings) -> torch.optim.Optimizer:
    """Plain gradient descent: no state at all."""
    return torch.optim.SGD(groups)


OPTIMIZERS: dict[str, Callable[[Settings], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "sgd": _sgd,
}

STATE_PER_NUMBER = {"adamw": 2, "adafactor": 0, "sgd": 0}
"""Numbers that an optimizer keeps for each one trained."""
