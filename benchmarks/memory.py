"""Compare memory and time of a training step: Hollowed Net, inference, plain LoRA, checkpointing, the stock node.

Every row works on SD1.5's U-Net as in ``train.py`` (random weights from one file, batch 1), in a process of its own,
in two precisions and at two sizes. See README.md for what exactly is measured.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import train
from common import harness
from common.charts import bars
from common.harness import Aim, Column, Row
from common.sd15_unet import RowSetup, UNetBenchmark, add_ratios
from train import Tick, Train

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
SAMPLES = 4
"""Samples with cached activations; the bytes of one sample are reported, and more take in proportion."""
LORA = {"rank": train.RANK, "alpha": train.RANK}


def inference(setup: RowSetup, tick: Tick) -> Train:
    """Return a run of one forward per step, without gradients: sampling, with the attention that training uses."""
    model = setup.model()
    import comfy.model_management

    @torch.inference_mode()
    def run() -> None:
        comfy.model_management.load_models_gpu([model])
        latent, prompt = (tensor.to(model.load_device) for tensor in setup.data())
        for _ in range(setup.updates):
            train.forward(model, latent, prompt)
            tick()

    return run


def ours(setup: RowSetup, _tick: Tick, fraction: float | None = None, checkpointing: bool = False) -> Train:
    """Return a training by the pack, on the whole network or with removed blocks."""
    hollow = {"fraction": fraction, "samples": SAMPLES, "storage": "ram"} if fraction else None
    return train.personalizing(
        setup, "lora", LORA, "attention", hollow, lambda *_: RECORDED.append(time.perf_counter()),
        gradient_checkpointing=checkpointing, memory="as set",
    )  # fmt: skip


RECORDED: list[float] = []
"""Times at which each sample's activations were cached in this process."""


ROWS: dict[str, Callable[[RowSetup, Tick], Train]] = {
    "inference": inference,
    "lora": ours,
    "lora_checkpointing": partial(ours, checkpointing=True),
    **{f"hollow_{fraction}": partial(ours, fraction=fraction) for fraction in FRACTIONS},
    **{
        f"hollow_{fraction}_checkpointing": partial(ours, fraction=fraction, checkpointing=True)
        for fraction in FRACTIONS
    },
    "stock": train.stock,
    "stock_checkpointing": partial(train.stock, checkpointing=True),
}

RATIOS = ("inference", "lora", "lora_checkpointing")
"""Rows to which the others are compared."""

COLUMNS = (
    Column("s per step", "seconds_per_step", harness.seconds),
    Column("/ lora", "times_lora", harness.times),
    Column("peak GB", "peak_bytes", harness.gigabytes),
    Column("/ inference", "peak_times_inference", harness.times),
    Column("/ lora", "peak_times_lora", harness.times),
    Column("/ checkpointing", "peak_times_lora_checkpointing", harness.times),
    Column("less removed, / inference", "left_times_inference", harness.times),
    Column("/ lora", "left_times_lora", harness.times),
    Column("/ checkpointing", "left_times_lora_checkpointing", harness.times),
    Column("without weights, / lora", "activations_times_lora", harness.times),
    Column("recording s per sample", "recording_seconds", harness.seconds),
    Column("recorded per sample", "recorded_bytes", lambda value: f"{value:,.0f}"),
)

AIMS = (
    Aim("hollow_0.4", "left_times_inference", 1.11),
    Aim("hollow_0.4", "left_times_lora", 0.74),
    Aim("hollow_0.4", "left_times_lora_checkpointing", 1.0),
    Aim("hollow_0.4_checkpointing", "left_times_lora_checkpointing", 1.0),
    Aim("hollow_0.4", "times_lora", 1.0),
)


def measure(name: str, setup: RowSetup) -> Row:
    """Run one row in this process and return its figures."""
    clock = harness.StepClock()
    run = ROWS[name](setup, clock.tick)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        made = run()
    row = {"seconds_per_step": harness.median(clock.seconds), "peak_bytes": peak.bytes, "latent": setup.latent}
    parameter_count = setup.weights.stat().st_size // 4  # the file is in float32
    row |= {"dtype": setup.dtype, "weights_bytes": parameter_count * getattr(torch, setup.dtype).itemsize}
    if not (name.startswith("hollow") and made):
        return row
    return row | of_hollow(setup, name) | {"recording_seconds": min(b - a for a, b in pairwise(RECORDED))}


def of_hollow(setup: RowSetup, name: str) -> Row:
    """Return the bytes of one sample's cached activations, and of the removed blocks' weights."""
    from hyperbooth.nodes.bridge.model.block_spans import choose_removed_blocks

    model = setup.model()
    hollow = choose_removed_blocks(model.model.diffusion_model, float(name.split("_")[1])).hollow
    latent, prompt = setup.data()
    with torch.inference_mode(), hollow.recording() as records:
        train.forward(model, latent, prompt)
    return {
        "recorded_bytes": sum(tensor.nbytes for record in records for tensor in record),
        "taken_out_bytes": sum(parameter.nbytes for parameter in hollow.parameters()),
    }


def compare(rows: Mapping[str, Row]) -> None:
    """Add ratios, memory in addition to the weights, and memory without the removed blocks' weights."""
    add_ratios(rows, "seconds_per_step", {other: f"times_{other}" for other in RATIOS})
    add_ratios(rows, "peak_bytes", {other: f"peak_times_{other}" for other in RATIOS})
    for row in rows.values():
        if "peak_bytes" in row:
            row["activations_bytes"] = row["peak_bytes"] - row["weights_bytes"]
            row["left_bytes"] = row["peak_bytes"]
        if "taken_out_bytes" in row and not torch.cuda.is_available():  # the removed weights are still in main memory
            row.pop("left_bytes")
            if "peak_bytes" in rows.get("inference", {}):  # the recording runs the whole network
                row["left_bytes"] = max(row["peak_bytes"] - row["taken_out_bytes"], rows["inference"]["peak_bytes"])
    add_ratios(rows, "left_bytes", {other: f"left_times_{other}" for other in RATIOS})
    add_ratios(rows, "activations_bytes", {"lora": "activations_times_lora"})


def chart(path: Path, rows: Sequence[Row]) -> None:
    """Draw each row's memory in every case relative to inference, hollow rows without the removed weights."""
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        name, _, case = row["name"].partition(", ")
        if "left_times_inference" in row:
            groups.setdefault(case, {})[name] = row["left_times_inference"]
    bars(path, "memory / inference", groups)


BENCHMARK = UNetBenchmark(
    "memory",
    __file__,
    __doc__,
    list(ROWS),
    measure,
    compare,
    COLUMNS,
    AIMS,
    needed={"stock": 6.3, "stock_checkpointing": 6.3},  # at latents 64
    steps=3,
    repeats=1,
    dtypes=("float32", "bfloat16"),
    latents=(32, 64),
    chart=chart,
)

if __name__ == "__main__":
    BENCHMARK.main()
