"""Memory and time of a training step with Hollowed Net, beside inference, plain LoRA, checkpointing and the stock node.

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
from common.sd15_unet import Job, UNetBench, add_ratios
from train import Tick, Train

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
SAMPLES = 4
"""On record: what one sample takes is reported, and more take in proportion."""
LORA = {"rank": train.RANK, "alpha": train.RANK}


def inference(job: Job, tick: Tick) -> Train:
    """One forward per step, without gradients: what sampling takes, with the attention that training has."""
    model = job.model()
    import comfy.model_management

    @torch.inference_mode()
    def run() -> None:
        comfy.model_management.load_models_gpu([model])
        latent, prompt = (tensor.to(model.load_device) for tensor in job.data())
        for _ in range(job.updates):
            train.forward(model, latent, prompt)
            tick()

    return run


def ours(job: Job, _tick: Tick, fraction: float | None = None, checkpointing: bool = False) -> Train:
    """The pack, on the whole network or on a hollow one."""
    hollow = {"fraction": fraction, "samples": SAMPLES, "storage": "ram"} if fraction else None
    return train.personalizing(
        job, "lora", LORA, "attention", hollow, lambda *_: RECORDED.append(time.perf_counter()),
        gradient_checkpointing=checkpointing, memory="as set",
    )  # fmt: skip


RECORDED: list[float] = []
"""When each sample was on record, in this process."""


ROWS: dict[str, Callable[[Job, Tick], Train]] = {
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
"""Rows that others are measured against."""

COLUMNS = (
    Column("s per step", "seconds_per_step", harness.seconds),
    Column("/ lora", "times_lora", harness.times),
    Column("peak GB", "peak_bytes", harness.gigabytes),
    Column("/ inference", "peak_times_inference", harness.times),
    Column("/ lora", "peak_times_lora", harness.times),
    Column("/ checkpointing", "peak_times_lora_checkpointing", harness.times),
    Column("less taken out, / inference", "left_times_inference", harness.times),
    Column("/ lora", "left_times_lora", harness.times),
    Column("/ checkpointing", "left_times_lora_checkpointing", harness.times),
    Column("beside weights, / lora", "activations_times_lora", harness.times),
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


def measure(name: str, job: Job) -> Row:
    """Run one row in this process."""
    clock = harness.StepClock()
    run = ROWS[name](job, clock.tick)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        made = run()
    row = {"seconds_per_step": harness.median(clock.seconds), "peak_bytes": peak.bytes, "latent": job.latent}
    numbers = job.weights.stat().st_size // 4  # the file is in float32
    row |= {"dtype": job.dtype, "weights_bytes": numbers * getattr(torch, job.dtype).itemsize}
    if not (name.startswith("hollow") and made):
        return row
    return row | of_hollow(job, name) | {"recording_seconds": min(b - a for a, b in pairwise(RECORDED))}


def of_hollow(job: Job, name: str) -> Row:
    """What is recorded of one sample, the output of the last block taken out; and the weights taken out."""
    from hyperbooth.nodes.bridge.model.block_spans import choose_removed_blocks

    model = job.model()
    hollow = choose_removed_blocks(model.model.diffusion_model, float(name.split("_")[1])).hollow
    latent, prompt = job.data()
    with torch.inference_mode(), hollow.recording() as records:
        train.forward(model, latent, prompt)
    return {
        "recorded_bytes": sum(tensor.nbytes for record in records for tensor in record),
        "taken_out_bytes": sum(parameter.nbytes for parameter in hollow.parameters()),
    }


def compare(rows: Mapping[str, Row]) -> None:
    """Also what is held beside the weights, and what stays on a device that the weights taken out can leave."""
    add_ratios(rows, "seconds_per_step", {other: f"times_{other}" for other in RATIOS})
    add_ratios(rows, "peak_bytes", {other: f"peak_times_{other}" for other in RATIOS})
    for row in rows.values():
        if "peak_bytes" in row:
            row["activations_bytes"] = row["peak_bytes"] - row["weights_bytes"]
            row["left_bytes"] = row["peak_bytes"]
        if "taken_out_bytes" in row and not torch.cuda.is_available():  # where they have not left
            row.pop("left_bytes")
            if "peak_bytes" in rows.get("inference", {}):  # the recording runs the whole network
                row["left_bytes"] = max(row["peak_bytes"] - row["taken_out_bytes"], rows["inference"]["peak_bytes"])
    add_ratios(rows, "left_bytes", {other: f"left_times_{other}" for other in RATIOS})
    add_ratios(rows, "activations_bytes", {"lora": "activations_times_lora"})


def chart(path: Path, rows: Sequence[Row]) -> None:
    """Memory of every row in every case, of hollow ones less what is taken out, beside inference's."""
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        name, _, case = row["name"].partition(", ")
        if "left_times_inference" in row:
            groups.setdefault(case, {})[name] = row["left_times_inference"]
    bars(path, "memory / inference", groups)


BENCH = UNetBench(
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
    BENCH.main()
