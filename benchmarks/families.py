"""Time, memory and size of each family of adapters, at equal rank, on the same model.

Every row trains SD1.5's U-Net as in ``train.py`` (random weights from one file, float32, batch 1), in a process of
its own. See README.md for what exactly is measured.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import _harness as harness
import torch
import train
from _harness import Aim, Column, Row
from train import Job

RANK = 4

ROWS: dict[str, dict[str, Any]] = {
    "lora": {"settings": {"rank": RANK, "alpha": RANK}},
    "lidb": {"settings": {"rank": RANK}},
    "para": {"settings": {"rank": RANK}},
    "full": {"settings": {}, "targets": "all weights", "optimizer": "adafactor"},
}
"""For ``full``, AdamW keeps 7 GB that adafactor does not, and the machine of the kept run has 24 in all."""

NEEDED_TIMES_WEIGHTS = {"full": 4.5}
"""Memory that a row needs, in sizes of the weights; 2 for the others."""

RATIOS = {
    "seconds_per_step": "times_lora", "cpu_seconds_per_step": "cpu_times_lora", "peak_bytes": "peak_times_lora",
}  # fmt: skip
"""Figure -> the name of its ratio to LoRA's."""

AIMS = (
    Aim("lidb", "times_lora", 1.1),
    Aim("para", "times_lora", 1.1),
    Aim("lidb", "peak_times_lora", 1.1),
    Aim("para", "peak_times_lora", 1.1),
)

COLUMNS = (
    Column("s per step", "seconds_per_step", harness.seconds),
    Column("worst run", "seconds_per_step_worst", harness.seconds),
    Column("/ lora", "times_lora", harness.times),
    Column("cpu s", "cpu_seconds_per_step", harness.seconds),
    Column("/ lora", "cpu_times_lora", harness.times),
    Column("peak GB", "peak_bytes", harness.gigabytes),
    Column("/ lora", "peak_times_lora", harness.times),
    Column("parameters", "parameters", lambda value: f"{value:,}"),
    Column("file bytes", "file_bytes", lambda value: f"{value:,}"),
    Column("optimizer", "optimizer"),
)


def measure(name: str, job: Job) -> Row:
    """Run one row in this process."""
    clock, row = harness.StepClock(), {"targets": "attention", "optimizer": "adamw", **ROWS[name]}
    personalize = train.personalizing(job, name, **row)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        adapter = personalize()
    return {
        "seconds_per_step": harness.median(clock.seconds), "cpu_seconds_per_step": harness.median(clock.cpu_seconds),
        "steps": len(clock.seconds), "peak_bytes": peak.bytes,
        "parameters": sum(parameter.numel() for parameter in adapter.parameters()), "file_bytes": file_bytes(adapter),
        "targets": row["targets"], "optimizer": row["optimizer"],
    }  # fmt: skip


def file_bytes(adapter: Any) -> int:
    """What Save Adapter's own format takes in float32."""
    from hyperbooth.models.storage import save_adapter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(adapter, path, torch.float32)
        return path.stat().st_size


def compare(names: list[str], job: Job, repeats: int, passed: list[str]) -> list[Row]:
    """The best of each row's runs, with its ratios to LoRA's."""

    def run(name: str) -> Row:
        needed = NEEDED_TIMES_WEIGHTS.get(name, 2) * job.weights.stat().st_size
        return harness.in_own_process_if_it_fits(__file__, ["--row", name, *passed], needed)

    rows = harness.in_turn(names, run, repeats, "seconds_per_step")
    lora = rows.get("lora", {})
    for row in rows.values():
        for figure, ratio in RATIOS.items():
            if figure in row and figure in lora:
                row[ratio] = row[figure] / lora[figure]
    return list(rows.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    parser.add_argument("--rows", type=lambda text: text.split(","), metavar="A,B", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--small", action="store_true", help="a U-Net of 26 M parameters, for a quick look")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a run, after one to warm up")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each row; the fastest counts")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, the same for every row")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if unknown := set(chosen.rows or ()) - ROWS.keys():
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return chosen


def report(chosen: argparse.Namespace, folder: Path) -> None:
    """Make the weights, measure the rows, print and keep the result."""
    weights = folder / "unet.safetensors"
    size = ["--small"] if chosen.small else []
    harness.in_own_process(train.__file__, ["--write-weights", str(weights), *size])
    passed = ["--weights", str(weights), "--steps", str(chosen.steps), "--threads", str(chosen.threads), *size]
    rows = compare(chosen.rows or list(ROWS), Job(weights, chosen.small, chosen.steps), chosen.repeats, passed)
    print(harness.table(rows, COLUMNS))
    if not chosen.small:
        print(*(aim.verdict({row["name"]: row for row in rows}) for aim in AIMS), sep="\n")
    whole = not chosen.small and not chosen.rows  # a quick look does not replace the kept run
    paths = ([harness.RESULTS / "families.json"] if whole else []) + ([chosen.json] if chosen.json else [])
    harness.write_json("families", harness.machine(chosen.threads), rows, *paths)


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    if chosen.row:
        print(json.dumps(measure(chosen.row, Job(chosen.weights, chosen.small, chosen.steps))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            report(chosen, Path(folder))


if __name__ == "__main__":
    main()
