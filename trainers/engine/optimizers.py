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

Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor of an optimizer's state -> its shape."""


def state_shapes(optimizer: str, shape: tuple[int, ...]) -> Shapes:
    """Return the tensors that an optimizer keeps for a parameter of ``shape`` after its first update, all float32.

    All but ``exp_avg`` hold counts or means of squares, which are not negative.
    """
    if optimizer == "adamw":
        return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    if optimizer == "adafactor":
        if len(shape) > 1:
            return {"step": (), "row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}
        return {"step": (), "variance": shape}
    return {}
