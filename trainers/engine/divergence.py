"""Divergence checks: stop a run whose loss is NaN, infinite or growing."""

import math
import statistics
from collections.abc import Sequence

WINDOW = 64
"""Steps whose median loss is compared: single losses differ by their noise level more than by anything else."""
DIVERGENCE_FACTOR = 8.0
"""A median this many times the first one is no chance: under ``x0``, the weighting whose losses spread most (their
logarithm by about 2), medians of 64 differ by a factor of 1.6 at one standard error."""
FIXED_NOISE_FACTOR = 3.0
"""The same for losses measured on fixed noise, which differ only as the model does."""
FIRST_CHECK = 64
"""Step of the first divergence check after the start; the next are at every doubling, and at the end."""

ADVICE = "Try a lower learning rate{half}, a longer warm-up, or max_grad_norm 1 in Training Options"
HALF = ", precision bfloat16 or float32"


class Diverged(FloatingPointError):
    """The run has diverged: its loss or gradient is NaN or infinite, or the loss has grown far above the first ones."""


def check_finite(what: str, value: float, step: int) -> None:
    """Require a finite value.

    Args:
        what: names the value in the message.
        value: what is checked.
        step: of the run, from 1.

    Raises:
        Diverged: the value is NaN or infinite; the message names the step and what to try.
    """
    if not math.isfinite(value):
        raise Diverged(f"the {what} is {value} at step {step}. {ADVICE.format(half=HALF)}.")


def check_training_losses(losses: Sequence[float], factor: float = DIVERGENCE_FACTOR) -> None:
    """Require that the last training losses are not far above the first ones.

    Raises:
        Diverged: the median of the last :data:`WINDOW` is more than ``factor`` times that of the first.
    """
    step = len(losses)
    if step >= 2 * WINDOW and step % (WINDOW // 4) == 0:
        first, last = statistics.median(losses[:WINDOW]), statistics.median(losses[-WINDOW:])
        if last > factor * first:
            raise _diverging("loss", last, first, step)


def check_fixed_noise_losses(what: str, measured: Sequence[tuple[int, float]]) -> None:
    """Require that the last of the ``(step, loss)`` measured on fixed noise is not far above the first.

    Raises:
        Diverged: it is more than :data:`FIXED_NOISE_FACTOR` times the first one, or NaN or infinite.
    """
    step, loss = measured[-1]
    check_finite(what, loss, step)
    if loss > FIXED_NOISE_FACTOR * measured[0][1]:
        raise _diverging(what, loss, measured[0][1], step)


def is_due(step: int, steps: int) -> bool:
    """Return whether a divergence check is due after ``step`` of ``steps``: at the start, at doublings, at the end."""
    doubled = step >= FIRST_CHECK and step % FIRST_CHECK == 0 and (step // FIRST_CHECK).bit_count() == 1
    return step in (0, steps) or doubled


def _diverging(what: str, now: float, first: float, step: int) -> Diverged:
    return Diverged(
        f"the run diverges: the {what} is {now:.4g} at step {step}, {now / first:.1f} times what it was at the start "
        f"({first:.4g}). {ADVICE.format(half='')}."
    )
