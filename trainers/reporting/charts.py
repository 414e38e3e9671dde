"""Charts of a training, drawn by matplotlib and returned as images."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..engine.state import History

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


def _loss_axes(total: int) -> tuple[Figure, Axes]:
    """Return axes of losses over ``total`` steps.

    Their place is fixed: matplotlib's constrained layout takes longer than the drawing, and moves the axes from one
    image of a run to the next.
    """
    figure = Figure(figsize=(5.12, 3.2), dpi=100)
    axes = figure.add_axes((0.14, 0.145, 0.825, 0.765))
    axes.set_xlim(0, total + 1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    axes.grid(alpha=0.3)
    return figure, axes


def _draw_validation(axes: Axes, history: History, total: int) -> None:
    axes.plot(*zip(*history.validation, strict=True), color="#00798c", linewidth=1.5, marker="o", markersize=3)
    step, loss = history.best
    side = "right" if step > 0.6 * total else "left"
    axes.plot(step, loss, "*", color="#edae49", markeredgecolor="#00798c", markersize=13)
    axes.annotate(
        f"best: step {step}, {loss:.4f}", (step, loss), (0, 9), textcoords="offset points", fontsize=8, ha=side
    )


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


def block_chart(changes: Mapping[str, float], relative: bool) -> Image.Image:
    """Draw the mean weight change of each block (block name -> change) as bars, in the order of ``changes``.

    ``relative`` labels the changes as shares of the weights' norms.
    """
    figure = Figure(figsize=(7.68, 3.84), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(changes)), list(changes.values()), color="#00798c")
    axes.set_xticks(range(len(changes)), list(changes), rotation=90, fontsize=7)
    axes.set_ylabel("mean ||dW|| / ||W||" if relative else "mean ||dW||")
    axes.grid(axis="y", alpha=0.3)
    return _rendered(figure)


def _rendered(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def chart_with_sample(chart: Image.Image, sample: Image.Image | None) -> Image.Image:
    """Return the chart with the sample, scaled to the same height, at its right; the chart alone without a sample."""
    if sample is None:
        return chart
    scaled = sample.resize((round(sample.width * chart.height / sample.height), chart.height))
    joined = Image.new("RGB", (chart.width + scaled.width, chart.height), "white")
    joined.paste(chart, (0, 0))
    joined.paste(scaled, (chart.width, 0))
    return joined
