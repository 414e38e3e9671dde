"""Measure time, memory and size of each adapter family, at equal rank, on the same model.

Every row trains SD1.5's U-Net as in ``train.py`` (random weights from one file, float32, batch 1), in a process of
its own. See README.md for what exactly is measured.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import train
from common import harness
from common.harness import Aim, Column, Row
from common.sd15_unet import RowSetup, UNetBenchmark, add_ratios

RANK = 4

ROWS: dict[str, dict[str, Any]] = {
    "lora": {"settings": {"rank": RANK, "alpha": RANK}},
    "lidb": {"settings": {"rank": RANK}},
    "para": {"settings": {"rank": RANK}},
    "full": {"settings": {}, "targets": "all weights", "optimizer": "adafactor"},
}
"""``full`` uses adafactor: AdamW's state is 7 GB larger, and the machine of the saved result has 24 GB in all."""

NEEDED_TIMES_WEIGHTS = {"full": 4.5}
"""Memory that a row needs, as a multiple of the weights' size; 2 for all others."""

RATIOS = {
    "seconds_per_step": "times_lora", "cpu_seconds_per_step": "cpu_times_lora", "peak_bytes": "peak_times_lora",
}  # fmt: skip
"""Figure -> name of its ratio to LoRA's."""

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


def measure(name: str, setup: RowSetup) -> Row:
    """Run one row in this process and return its figures."""
    clock, row = harness.StepClock(), {"targets": "attention", "optimizer": "adamw", **ROWS[name]}
    personalize = train.personalizing(setup, name, **row)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        adapter = personalize()
    return {
        "seconds_per_step": harness.median(clock.seconds), "cpu_seconds_per_step": harness.median(clock.cpu_seconds),
        "steps": len(clock.seconds), "peak_bytes": peak.bytes,
        "parameters": sum(parameter.numel() for parameter in adapter.parameters()), "file_bytes": file_bytes(adapter),
        "targets": row["targets"], "optimizer": row["optimizer"],
    }  # fmt: skip


def file_bytes(adapter: Any) -> int:
    """Return the size of the adapter in Save Adapter's own format in float32."""
    from hyperbooth.models.files.adapter_file import save_adapter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(adapter, path, torch.float32)
        return path.stat().st_size


def compare(rows: Mapping[str, Row]) -> None:
    for figure, ratio in RATIOS.items():
        add_ratios(rows, figure, {"lora": ratio})


if __name__ == "__main__":
    UNetBenchmark(
        "families", __file__, __doc__, list(ROWS), measure, compare, COLUMNS, AIMS, NEEDED_TIMES_WEIGHTS
    ).main()
