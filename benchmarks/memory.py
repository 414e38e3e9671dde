"""Memory and time of a training step with Hollowed Net, beside inference, plain LoRA, checkpointing and the stock node.

Every row works on SD1.5's U-Net as in ``train.py`` (random weights from one file, batch 1), in a process of its own,
in two precisions and at two sizes. See README.md for what exactly is measured.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import _harness as harness
import torch
import train
from _harness import Aim, Column, Row
from train import Job, Tick, Train

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
SAMPLES = 4
"""On record: what one sample takes is reported, and more take in proportion."""
DTYPES = ("float32", "bfloat16")
LATENTS = (32, 64)
LORA = {"rank": train.RANK, "alpha": train.RANK}


def inference(job: Job, tick: Tick) -> Train:
    """One forward per step, without gradients: what sampling takes."""
    model = train.loaded(job)
    import comfy.model_management

    @torch.inference_mode()
    def run() -> None:
        comfy.model_management.load_models_gpu([model])
        latent, prompt = (tensor.to(model.load_device) for tensor in train.data(job))
        for _ in range(job.updates):
            model.model.apply_model(latent, torch.ones(1, device=latent.device), c_crossattn=prompt).sum().item()
            tick()

    return run


def ours(job: Job, _tick: Tick, fraction: float | None = None, checkpointing: bool = False) -> Train:
    """The pack, on the whole network or on a hollow one."""
    hollow = {"fraction": fraction, "samples": SAMPLES, "storage": "ram"} if fraction else None
    return train.personalizing(
        job, "lora", LORA, "attention", hollow, gradient_checkpointing=checkpointing, memory="as set"
    )


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
    Column("beside weights, / lora", "activations_times_lora", harness.times),
    Column("recorded per sample", "recorded_bytes", lambda value: f"{value:,.0f}"),
)

AIMS = (
    Aim("hollow_0.4", "peak_times_inference", 1.11),
    Aim("hollow_0.4", "peak_times_lora", 0.74),
    Aim("hollow_0.4_checkpointing", "peak_times_lora_checkpointing", 1.0),
    Aim("hollow_0.4", "times_lora", 1.0),
)


def measure(name: str, job: Job) -> Row:
    """Run one row in this process."""
    clock = harness.StepClock()
    run = ROWS[name](job, clock.tick)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        made = run()
    row = {"seconds_per_step": harness.median(clock.seconds), "peak_bytes": peak.bytes, "latent": job.latent}
    row |= {"dtype": job.dtype, "weights_bytes": job.weights.stat().st_size}
    return row | ({"recorded_bytes": recorded_bytes(job, name)} if name.startswith("hollow") and made else {})


def recorded_bytes(job: Job, name: str) -> int:
    """Of one sample: the output of the last block taken out."""
    from hyperbooth.nodes.bridge.cuts import nearest_cut

    model = train.loaded(job)
    hollow = nearest_cut(model.model.diffusion_model, float(name.split("_")[1])).hollow
    latent, prompt = train.data(job)
    with torch.inference_mode(), hollow.recording() as records:
        model.model.apply_model(latent, torch.ones(1), c_crossattn=prompt)
    return sum(tensor.nbytes for record in records for tensor in record)


def compare(names: list[str], job: Job, repeats: int, passed: list[str]) -> list[Row]:
    """The best of each row's runs, with its ratios."""

    def run(name: str) -> Row:
        needed = (4.7 if name.startswith("stock") else 2) * job.weights.stat().st_size
        return harness.in_own_process_if_it_fits(__file__, ["--row", name, *passed], needed)

    rows = harness.in_turn(names, run, repeats, "seconds_per_step")
    for row in rows.values():
        for other in RATIOS:
            if "peak_bytes" in row and "peak_bytes" in rows.get(other, {}):
                row[f"peak_times_{other}"] = row["peak_bytes"] / rows[other]["peak_bytes"]
                row[f"times_{other}"] = row["seconds_per_step"] / rows[other]["seconds_per_step"]
        if "peak_bytes" in row and "peak_bytes" in rows.get("lora", {}):
            beside = rows["lora"]["peak_bytes"] - rows["lora"]["weights_bytes"]
            row["activations_times_lora"] = (row["peak_bytes"] - row["weights_bytes"]) / beside
    return list(rows.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    parser.add_argument("--rows", type=lambda text: text.split(","), metavar="A,B", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--small", action="store_true", help="a U-Net of 26 M parameters, for a quick look")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a run, after one to warm up")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each row; the fastest counts")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, the same for every row")
    parser.add_argument("--dtype", choices=DTYPES, help="one precision only")
    parser.add_argument("--latent", type=int, choices=LATENTS, help="one size only")
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
    kept: list[Row] = []
    for dtype, latent in product(DTYPES, LATENTS):
        if chosen.dtype not in (None, dtype) or chosen.latent not in (None, latent):
            continue
        passed = ["--weights", str(weights), "--steps", str(chosen.steps), "--threads", str(chosen.threads), *size]
        passed += ["--dtype", dtype, "--latent", str(latent)]
        job = Job(weights, chosen.small, chosen.steps, latent, dtype)
        rows = compare(chosen.rows or list(ROWS), job, chosen.repeats, passed)
        print(f"\n{dtype}, latents {latent} x {latent}", harness.table(rows, COLUMNS), sep="\n")
        if not chosen.small:
            print(*(aim.verdict({row["name"]: row for row in rows}) for aim in AIMS), sep="\n")
        kept += [{**row, "name": f"{row['name']}, {dtype}, {latent}"} for row in rows]
    whole = not chosen.small and not (chosen.rows or chosen.dtype or chosen.latent)
    paths = ([harness.RESULTS / "memory.json"] if whole else []) + ([chosen.json] if chosen.json else [])
    harness.write_json("memory", harness.machine(chosen.threads), kept, *paths)


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    if chosen.row:
        job = Job(chosen.weights, chosen.small, chosen.steps, chosen.latent, chosen.dtype)
        print(json.dumps(measure(chosen.row, job)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            report(chosen, Path(folder))


if __name__ == "__main__":
    main()
