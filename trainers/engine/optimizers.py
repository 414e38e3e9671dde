"""The optimizers, with the size of their state."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version

Settings = Sequence[dict[str, Any]]
"""PyTorch's parameter groups, each with ``params`` and ``lr``."""

FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices with a fused AdamW: one kernel for all of an adapter's hundreds of small parameters."""


def _adamw(groups: Settings) -> torch.optim.Optimizer:
    """Return AdamW: decoupled weight decay (1711.05101), two values of state per weight."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.device.type in FUSED for parameter in parameters)
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2, fused=fused)
    if fused:  # fused steps do not raise the parameters' version, which caches of values computed from them compare
        optimizer.register_step_post_hook(lambda *_: increment_version(parameters))
    return optimizer


def _adafactor(groups: Settings) -> torch.optim.Optimizer:
    """Return Adafactor: second moments as an outer product of rows and columns (1804.04235), next to no state.

    The paper scales steps by the root mean square of the parameter. An adapter that starts at zero has none, so the
    lower bound of that scale is set to 1: steps are the learning rate's own, and AdamW's rates carry over.
    """
    return torch.optim.Adafactor(groups, eps=(None, 1.0), weight_decay=0.0)


def _sgd(groups: Settings) -> torch.optim.Optimizer:
    """Return plain gradient descent, which has no state."""
    return torch.optim.SGD(groups)


OPTIMIZERS: dict[str, Callable[[Settings], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "sgd": _sgd,
}

STATE_PER_PARAMETER = {"adamw": 2, "adafactor": 0, "sgd": 0}
"""Values of optimizer state for each trained value."""
