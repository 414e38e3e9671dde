"""Draw charts of benchmarks as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#d1495b", "#00798c", "#edae49", "#9db4c0")


def curves(path: Path, x: str, lines: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
    """Draw name -> (x, y, spread of y) of each point as curves with error bars."""
    figure = Figure(figsize=(6.4, 4.0), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for (name, points), color in zip(lines.items(), COLORS, strict=False):
        at, values, spread = zip(*points, strict=True)
        axes.errorbar(at, values, spread, color=color, marker="o", markersize=4, capsize=3, label=name)
    axes.set_xlabel(x)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    _write(figure, path)


def bars(path: Path, y: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Draw group -> bar -> value as a bar chart, grouped by the bars' names."""
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    figure = Figure(figsize=(9.6, 4.8), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(groups)
    for index, ((group, values), color) in enumerate(zip(groups.items(), COLORS, strict=False)):
        at = [names.index(name) - 0.4 + width * (index + 0.5) for name in values]
        axes.bar(at, list(values.values()), width, color=color, label=group)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.axhline(1, color="black", linewidth=1, linestyle="--")
    axes.set_ylabel(y)
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    part.replace(path)
