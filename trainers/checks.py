"""Checks of settings, with the name of the input in the message."""

import math
from collections.abc import Collection


def check_number(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Require a finite number in ``[low, high]``.

    Args:
        name: of the input, for the message.
        value: what is checked.
        low: smallest value allowed.
        high: largest value allowed.

    Raises:
        ValueError: it is not; the message names the input.
    """
    if not math.isfinite(value) or not low <= value <= high:
        upto = f" and at most {high:g}" if math.isfinite(high) else ""
        raise ValueError(f"{name} is {value}; give a number of at least {low:g}{upto}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Require one of some choices.

    Args:
        name: of the input, for the message.
        value: what is checked.
        choices: container of the allowed values.

    Raises:
        ValueError: it is not; the message names the input.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; give one of {', '.join(map(repr, choices))}")
