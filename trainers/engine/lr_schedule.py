"""Learning-rate schedules."""

import math

SCHEDULES = ("constant", "linear", "cosine")


def lr_factor(step: int, steps: int, warmup_steps: int, schedule: str) -> float:
    """Return the factor on the learning rate at ``step``.

    It rises as ``(k + 1) / warmup_steps``, then follows the schedule. transformers' schedules were compared: they give
    the first step a rate of zero and waste it.

    Args:
        step: optimizer update, from 0.
        steps: optimizer updates of the whole run.
        warmup_steps: updates over which the rate rises.
        schedule: one of :data:`SCHEDULES`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    past = (step - warmup_steps) / max(1, steps - warmup_steps)
    return {"constant": 1.0, "linear": 1 - past, "cosine": (1 + math.cos(math.pi * past)) / 2}[schedule]
