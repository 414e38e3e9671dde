"""Charts of a training, drawn by matplotlib and returned as images.

A chart is a view, and no run may end for it: where matplotlib is missing or cannot draw (a broken font or cache), there
is None instead, and one line in the log. matplotlib is imported with the first chart: it is half of the pack's import.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, ParamSpec

import numpy as np
from PIL import Image

from ..engine.state import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger("hyperbooth")

P = ParamSpec("P")

BLOCK_CHART = (7.68, 3.84)
"""Width and height of :func:`block_chart`, in hundreds of pixels."""
SMOOTHING = 0.05
"""Share of the run's steps that the smoothed curve averages over."""


def smoothed(losses: Sequence[float], total: int | None = None) -> list[float]:
    """Return the exponential moving average without bias at the start.

    ``m_k / (1 - b^k)`` with ``m_k = b m_(k-1) + (1-b) l_k`` and ``b = 1 - 1 / (SMOOTHING total)``; ``total`` is the
    number of steps of the whole run (default: of ``losses``).
    """
    keep = 1 - 1 / max(1.0, SMOOTHING * (total or len(losses)))
    average, weight, curve = 0.0, 0.0, []
    for loss in losses:
        average, weight = keep * average + (1 - keep) * loss, keep * weight + (1 - keep)
        curve.append(average / weight)
    return curve


@cache
def _report_failure(error: str) -> None:
    """Say in the log, once for each error, that charts are left out."""
    logger.warning("charts are left out: matplotlib cannot draw them (%s)", error)


def _optional(draw: Callable[P, Image.Image]) -> Callable[P, Image.Image | None]:
    """Return a function that gives None where ``draw`` fails."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Image.Image | None:
        try:
            return draw(*args, **kwargs)
        except Exception as error:  # whatever matplotlib raises: a training is worth more than its chart
            _report_failure(f"{type(error).__name__}: {error}"[:200])
            return None

    return drawn


@_optional
def loss_chart(history: History, total: int) -> Image.Image:
    """Draw every loss as a dot and the smoothed curve, over an axis as long as the whole run (``total`` steps).

    Validation losses are a second curve with the best one marked.
    """
    losses = history.losses
    figure, axes = _loss_axes(total)
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, ".", color="#9db4c0", markersize=3)
    curve = smoothed(losses, total)
    axes.plot(steps, curve, color="#d1495b", linewidth=2)
    if history.best is not None:
        _draw_validation(axes, history, total)
    axes.set_title(f"step {len(losses)} of {total}   loss {curve[-1]:.4g} (smoothed)", fontsize=10)
    return _rendered(figure)


def _loss_axes(total: int) -> "tuple[Figure, Axes]":
    """Return axes of losses over ``total`` steps.

    Their place is fixed: matplotlib's constrained layout takes longer than the drawing, and moves the axes from one
    image of a run to the next.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.12, 3.2), dpi=100)
    axes = figure.add_axes((0.14, 0.145, 0.825, 0.765))
    axes.set_xlim(0, total + 1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    axes.grid(alpha=0.3)
    return figure, axes


def _draw_validation(axes: "Axes", history: History, total: int) -> None:
    axes.plot(*zip(*history.validation, strict=True), color="#00798c", linewidth=1.5, marker="o", markersize=3)
    step, loss = history.best
    side = "right" if step > 0.6 * total else "left"
    axes.plot(step, loss, "*", color="#edae49", markeredgecolor="#00798c", markersize=13)
    axes.annotate(
        f"best: step {step}, {loss:.4f}", (step, loss), (0, 9), textcoords="offset points", fontsize=8, ha=side
    )


@_optional
def comparison_chart(
    curves: Mapping[str, Sequence[tuple[int, float]]], *, baselines: Mapping[str, float], total: int, title: str
) -> Image.Image:
    """Draw losses over the steps of a run, next to constant baselines.

    Args:
        curves: name -> ``(step, loss)`` of each measurement.
        baselines: name -> loss that does not change during the run, drawn as a dashed line.
        total: steps of the run.
        title: above the chart.
    """
    figure, axes = _loss_axes(total)
    for (name, curve), color in zip(curves.items(), ("#d1495b", "#9db4c0", "#edae49"), strict=False):
        axes.plot(*zip(*curve, strict=True), color=color, linewidth=2, marker="o", markersize=3, label=name)
    for name, loss in baselines.items():
        axes.axhline(loss, color="#00798c", linewidth=1, linestyle="--")
        axes.annotate(name, (total, loss), (-2, 2), textcoords="offset points", fontsize=8, ha="right")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    return _rendered(figure)


@_optional
def block_chart(changes: Mapping[str, float], relative: bool) -> Image.Image:
    """Draw the mean weight change of each block (block name -> change) as bars, in the order of ``changes``.

    ``relative`` labels the changes as shares of the weights' norms.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=BLOCK_CHART, dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(changes)), list(changes.values()), color="#00798c")
    axes.set_xticks(range(len(changes)), list(changes), rotation=90, fontsize=7)
    axes.set_ylabel("mean ||dW|| / ||W||" if relative else "mean ||dW||")
    axes.grid(axis="y", alpha=0.3)
    return _rendered(figure)


def _rendered(figure: "Figure") -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def chart_with_sample(chart: Image.Image | None, sample: Image.Image | None) -> Image.Image | None:
    """Return the chart with the sample, scaled to the same height, at its right; one alone without the other."""
    if sample is None or chart is None:
        return sample if chart is None else chart
    scaled = sample.resize((round(sample.width * chart.height / sample.height), chart.height))
    joined = Image.new("RGB", (chart.width + scaled.width, chart.height), "white")
    joined.paste(chart, (0, 0))
    joined.paste(scaled, (chart.width, 0))
    return joined
