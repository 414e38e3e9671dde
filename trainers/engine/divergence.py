"""Stopping a run before it does harm."""

import math
import statistics
from collections.abc import Sequence

WINDOW = 64
"""Steps whose median loss is compared: single losses differ by their noise level more than by anything else."""
WORSE = 8.0
"""A median this many times the first one is no chance: under ``x0``, the weighting whose losses spread most (their
logarithm by about 2), medians of 64 differ by a factor of 1.6 at one standard error."""
WORSE_VALIDATED = 3.0
"""The same for losses measured on fixed noise, which differ only as the model does."""
FIRST_LOOK = 64
"""Steps after which a run is first looked at so; then at every doubling, and at the end."""

ADVICE = "Try a lower learning rate{half}, a longer warm-up, or max_grad_norm 1 in Training Options"
HALF = ", precision bfloat16 or float32"


class Diverged(FloatingPointError):
    """The run is no longer learning: its loss or gradient is no number, or has grown out of all proportion."""


def check_finite(what: str, value: float, step: int) -> None:
    """``value`` is a number.

    Raises:
        Diverged: it is NaN or infinite; the message names the step (from 1) and what to try.
    """
    if not math.isfinite(value):
        raise Diverged(f"the {what} is {value} at step {step}. {ADVICE.format(half=HALF)}.")


def check_course(losses: Sequence[float], worse: float = WORSE) -> None:
    """The losses so far are not far above those at the start.

    Raises:
        Diverged: the median of the last :data:`WINDOW` is ``worse`` times that of the first.
    """
    step = len(losses)
    if step >= 2 * WINDOW and step % (WINDOW // 4) == 0:
        first, last = statistics.median(losses[:WINDOW]), statistics.median(losses[-WINDOW:])
        if last > worse * first:
            raise _diverging("loss", last, first, step)


def check_measured(what: str, measured: Sequence[tuple[int, float]]) -> None:
    """The last of ``measured`` (step, loss), taken on fixed noise, is not far above the first.

    Raises:
        Diverged: it is :data:`WORSE_VALIDATED` times the first one, or no number.
    """
    step, loss = measured[-1]
    check_finite(what, loss, step)
    if loss > WORSE_VALIDATED * measured[0][1]:
        raise _diverging(what, loss, measured[0][1], step)


def is_due(step: int, steps: int) -> bool:
    """Whether the run is to be looked at after ``step`` of ``steps``: at the start, at doublings, at the end."""
    doubled = step >= FIRST_LOOK and step % FIRST_LOOK == 0 and (step // FIRST_LOOK).bit_count() == 1
    return step in (0, steps) or doubled


def _diverging(what: str, now: float, first: float, step: int) -> Diverged:
    return Diverged(
        f"the run diverges: the {what} is {now:.4g} at step {step}, {now / first:.1f} times what it was at the start "
        f"({first:.4g}). {ADVICE.format(half='')}."
    )
