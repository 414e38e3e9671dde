"""Checks of settings, with the name of the input in the message."""

import math
from typing import Any


def check_number(name: str, value: float, low: float, high: float = math.inf) -> None:
    """``value`` is a finite number in ``[low, high]``, or a ValueError naming the input."""
    if not math.isfinite(value) or not low <= value <= high:
        upto = f" and at most {high:g}" if math.isfinite(high) else ""
        raise ValueError(f"{name} is {value}; give a number of at least {low:g}{upto}")


def check_choice(name: str, value: str, choices: Any) -> None:
    """``value`` is one of ``choices``, or a ValueError naming the input."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; give one of {', '.join(map(repr, choices))}")
