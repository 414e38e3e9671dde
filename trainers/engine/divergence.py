"""Divergence checks: stop a run whose loss is NaN, infinite or growing."""

import math
import statistics
from collections.abc import Callable, Sequence

WINDOW = 64
"""Steps whose median loss is compared: single losses differ by their noise level more than by anything else."""
DIVERGENCE_FACTOR = 8.0
"""A median this many times the first one is no chance: under ``x0``, the weighting whose losses spread most (their
logarithm by about 2), medians of 64 differ by a factor of 1.6 at one standard error."""
FIXED_NOISE_FACTOR = 3.0
"""The same for losses measured on fixed noise, which differ only as the model does."""
FIRST_CHECK = 64
"""Step of the first divergence check after the start; the next are at every doubling, and at the end."""

LEARNING_RATE_ADVICE = "Try a lower learning rate{half}, a longer warm-up, or max_grad_norm 1 in Training Options"
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
        raise Diverged(f"the {what} is {value} at step {step}. {LEARNING_RATE_ADVICE.format(half=HALF)}.")


Reference = Callable[[], float]
"""Measures the same loss on the same draws without the adapter; called only if a run seems to diverge."""


def check_training_losses(
    losses: Sequence[float], factor: float = DIVERGENCE_FACTOR, reference: Reference | None = None
) -> None:
    """Require that the last training losses are not far above the first ones, and above those without the adapter.

    Args:
        losses: of all steps so far.
        factor: how many times the first ones, or the reference if that is larger, the last ones may be.
        reference: the median loss of the last :data:`WINDOW` steps without the adapter. An adapter that has been
            over-fitted begins with losses far below any that more images can give.

    Raises:
        Diverged: the median of the last :data:`WINDOW` is more than ``factor`` times that of the first.
    """
    step = len(losses)
    if step >= 2 * WINDOW and step % (WINDOW // 4) == 0:
        first, last = statistics.median(losses[:WINDOW]), statistics.median(losses[-WINDOW:])
        _check_growth("loss", last, first, factor=factor, step=step, reference=reference)


def check_fixed_noise_losses(
    what: str, measured: Sequence[tuple[int, float]], reference: Reference | None = None
) -> None:
    """Require that the last of the ``(step, loss)`` measured on fixed noise is not far above the first.

    Args:
        what: names the loss in the message.
        measured: of the run so far.
        reference: the same loss without the adapter, see :func:`check_training_losses`.

    Raises:
        Diverged: it is more than :data:`FIXED_NOISE_FACTOR` times the first one, or NaN or infinite.
    """
    step, loss = measured[-1]
    check_finite(what, loss, step)
    _check_growth(what, loss, measured[0][1], factor=FIXED_NOISE_FACTOR, step=step, reference=reference)


def _check_growth(
    what: str, now: float, first: float, *, factor: float, step: int, reference: Reference | None
) -> None:
    if now <= factor * first:
        return
    start = first if reference is None else max(first, reference())
    if not now <= factor * start:
        raise _diverging(what, now, start, step)


def is_due(step: int, steps: int) -> bool:
    """Return whether a divergence check is due after ``step`` of ``steps``: at the start, at doublings, at the end."""
    doubled = step >= FIRST_CHECK and step % FIRST_CHECK == 0 and (step // FIRST_CHECK).bit_count() == 1
    return step in (0, steps) or doubled


def _diverging(what: str, now: float, first: float, step: int) -> Diverged:
    return Diverged(
        f"the run diverges: the {what} is {now:.4g} at step {step}, {now / first:.1f} times what it was at the start, "
        f"or without the adapter ({first:.4g}). {LEARNING_RATE_ADVICE.format(half='')}."
    )
