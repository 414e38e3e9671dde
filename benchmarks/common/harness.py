"""Provide what every benchmark needs: one process per row, clocks, peak memory, the table and the JSON file."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"

sys.path.insert(0, str(ROOT))
from tools.comfy_harness.import_pack import comfyui_path  # noqa: E402

sys.path.remove(str(ROOT))  # its `nodes` and `models` would hide ComfyUI's; `tools` stays importable
SAMPLING_SECONDS = 0.05

Row = dict[str, Any]


def machine(threads: int) -> Row:
    """Describe the machine that the figures were measured on, without its name or its owner's."""
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "comfyui": _comfyui_version(),
        **{name: _version(name) for name in ("diffusers", "peft")},
        "date": date.today().isoformat(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _comfyui_version() -> str:
    text = (comfyui_path() / "comfyui_version.py").read_text()
    return re.search(r"__version__ = [\"'](.+?)[\"']", text)[1]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass
class StepClock:
    """Measure the seconds between ticks.

    ``on_optimizer_steps`` ticks at the end of every ``step()`` of any PyTorch optimizer, which times the training loop
    of another package without changing it.
    """

    stamps: list[float] = field(default_factory=list)
    cpu_stamps: list[float] = field(default_factory=list)

    def tick(self, *_: Any) -> None:
        self.stamps.append(time.perf_counter())
        self.cpu_stamps.append(time.process_time())

    @contextmanager
    def on_optimizer_steps(self) -> Iterator[None]:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        handle = register_optimizer_step_post_hook(self.tick)
        try:
            yield
        finally:
            handle.remove()

    @property
    def seconds(self) -> list[float]:
        """Return one figure per step except the first, the warm-up, whose start is unknown."""
        return _between(self.stamps)

    @property
    def cpu_seconds(self) -> list[float]:
        """Return the processor time of the process in the same steps, which a busy machine disturbs less."""
        return _between(self.cpu_stamps)


def _between(stamps: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(stamps)]


@dataclass
class Peak:
    """Hold the peak memory of the process inside a block; it is set when the block ends."""

    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak memory of the block.

    With CUDA this is what PyTorch allocated on the device. Otherwise it is the resident set, file pages included: on
    Linux the kernel's high-water mark, reset on entry; elsewhere it is sampled.
    """
    import torch

    peak = Peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
        yield peak
        peak.bytes = _high_water_mark()
    else:
        with _sampled_resident_set(peak):
            yield peak


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


@contextmanager
def _sampled_resident_set(peak: Peak) -> Iterator[None]:
    process, done = psutil.Process(), threading.Event()

    def sample() -> None:
        while not done.is_set():
            peak.bytes = max(peak.bytes, process.memory_info().rss)
            done.wait(SAMPLING_SECONDS)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def in_own_process(script: str, arguments: Sequence[str]) -> Row:
    """Run ``script`` and return the last JSON line that it printed.

    Raises:
        RuntimeError: the script failed; its output is printed to stderr.
    """
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
    raise RuntimeError(f"{Path(script).name} {' '.join(arguments[:2])} ended with {done.returncode}")


def best_of(name: str, runs: Iterable[Row], figure: str) -> Row:
    """Return the run with the smallest ``figure``, the least disturbed one, and the largest as ``<figure>_worst``."""
    runs = list(runs)
    whole = [run for run in runs if "skipped" not in run]
    if not whole:
        return {"name": name, **runs[-1]}
    values = [run[figure] for run in whole]
    return {"name": name, **min(whole, key=lambda run: run[figure]), f"{figure}_worst": max(values), "runs": len(whole)}


def in_turn(names: Sequence[str], run: Callable[[str], Row], repeats: int, figure: str) -> dict[str, Row]:
    """Run every row ``repeats`` times in turn, so that a disturbance affects all alike; return the best of each."""
    runs: dict[str, list[Row]] = {name: [] for name in names}
    for index in range(repeats):
        for name in names:
            runs[name].append(done := run(name))
            outcome = done.get("skipped") or f"{done[figure]:.3f} {figure}"
            print(f"run {index + 1} of {repeats}, {name}: {outcome}", file=sys.stderr, flush=True)
    return {name: best_of(name, of_row, figure) for name, of_row in runs.items()}


def in_own_process_if_it_fits(script: str, arguments: Sequence[str], needed: float) -> Row:
    """Call :func:`in_own_process`; return a skipped row if it fails or if fewer than ``needed`` bytes are free."""
    import torch

    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    if free < needed:
        return {"skipped": f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"}
    try:
        return in_own_process(script, arguments)
    except RuntimeError as error:
        return {"skipped": str(error)}


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


@dataclass(frozen=True)
class Column:
    """Describe one column of the table: its heading, the figure's key in a row, and its format."""

    heading: str
    figure: str
    write: Callable[[Any], str] = str


def seconds(value: float) -> str:
    return f"{value:.3f}"


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f}"


def times(value: float) -> str:
    return f"{value:.2f} x"


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Format rows under headings, names to the left, figures to the right; a skipped row shows its reason."""
    cells = [["", *(column.heading for column in columns)]]
    cells += [[row["name"], *(_cell(row, column) for column in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    reasons = ["", *(f"  {row['skipped']}" if "skipped" in row else "" for row in rows)]
    lines = [
        line[0].ljust(widths[0]) + "".join("  " + cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))
        for line in cells
    ]
    return "\n".join(line + reason for line, reason in zip(lines, reasons, strict=True))


def _cell(row: Row, column: Column) -> str:
    value = row.get(column.figure)
    return "-" if value is None else column.write(value)


@dataclass(frozen=True)
class Aim:
    """Set a target: the ``figure`` of ``row`` is at most ``limit``, or at least ``limit`` with ``least``."""

    row: str
    figure: str
    limit: float
    least: bool = False

    def verdict(self, rows: Mapping[str, Row]) -> str:
        value = rows.get(self.row, {}).get(self.figure)
        target = f"{self.row} {self.figure} at {'least' if self.least else 'most'} {self.limit:g}"
        if value is None:
            return f"not measured  {target}"
        met = value >= self.limit if self.least else value <= self.limit
        return f"{'met' if met else 'NOT MET':<12}  {target}: {value:.3f}"


def write_json(benchmark: str, machine: Row, rows: Sequence[Row], *paths: Path) -> None:
    """Write the report to each of ``paths`` atomically."""
    text = json.dumps({"bench": benchmark, "machine": machine, "rows": list(rows)}, indent=2) + "\n"
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(text)
        temporary.replace(path)
