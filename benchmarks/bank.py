"""People per hour: subjects of a bank side by side in one batch, beside one by one and the floor.

Every row trains LiDBs on SD1.5's U-Net as in ``train.py`` (random weights from one file), attention layers, one picture
per subject, in a process of its own. See README.md for what exactly is measured.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import _harness as harness
import torch
import train
from _harness import Aim, Column, Row
from _unet import Job, UNetBench
from train import Tick, Train

LEARNING_RATE = 1e-3
STEPS_EACH = 100
"""Steps of a subject, for the figure of people per hour."""
TOGETHER = (4, 16)


def one_by_one(job: Job, _tick: Tick) -> Train:
    """A run of *Train Adapter* with LiDB: what each subject costs by itself."""
    return train.personalizing(job, "lidb", {}, "attention", memory="as set")


def side_by_side(job: Job, _tick: Tick, together: int) -> Train:
    """One batch of a bank, pictures encoded already."""
    model = train.loaded(job)
    harness.devkit("pack").load_pack()
    from hyperbooth.models.adapters import LiDBConfig
    from hyperbooth.nodes.bridge.session import workbench
    from hyperbooth.trainers.bank_training import BankTrainer
    from hyperbooth.trainers.options import Method, TrainingOptions
    from hyperbooth.trainers.recipe import Recipe
    from hyperbooth.trainers.subject import Example, Subject

    options = TrainingOptions(precision=job.dtype, memory="as set")
    method = Method("lidb", LiDBConfig(), "attention", LEARNING_RATE)
    recipe = Recipe(method, "a photo of sks face", job.updates, options=options)

    @torch.inference_mode()
    def run() -> Any:
        latent, prompt = train.data(job)
        cond = [[prompt, {}]]
        subjects = [Subject((Example(latent + i, cond, recipe.prompt),)) for i in range(together)]
        with workbench(model, options, subjects[0], together) as bench:
            return BankTrainer(recipe, recipe.start(bench.shapes), together)(
                bench, subjects, lambda _together: lambda _history: None
            )  # fmt: skip

    return run


ROWS: dict[str, tuple[int, Callable[[Job, Tick], Train]]] = {
    "floor": (1, train.floor),
    "one_by_one": (1, one_by_one),
    **{f"floor_{n}": (n, partial(train.floor, together=n)) for n in TOGETHER},
    **{f"bank_{n}": (n, partial(side_by_side, together=n)) for n in TOGETHER},
}
"""Name -> subjects in a step, and what runs."""

COLUMNS = (
    Column("s per step", "seconds_per_step", harness.seconds),
    Column("s per subject", "seconds_per_subject", harness.seconds),
    Column("/ floor", "times_own_floor", harness.times),
    Column("faster than one by one", "speed_up", harness.times),
    Column("people per hour", "people_per_hour", lambda value: f"{value:,.1f}"),
    Column("peak GB", "peak_bytes", harness.gigabytes),
)

AIMS = (Aim("bank_4", "times_own_floor", 1.15), Aim("bank_16", "times_own_floor", 1.15))
"""Against two forwards of the same batch: there is nothing to gain from a batch that forwards do not gain from it."""


def measure(name: str, job: Job) -> Row:
    """Run one row in this process."""
    together, make = ROWS[name]
    clock = harness.StepClock()
    run = make(job, clock.tick)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        run()
    seconds = harness.median(clock.seconds)
    return {
        "seconds_per_step": seconds, "steps": len(clock.seconds), "subjects": together, "peak_bytes": peak.bytes,
        "seconds_per_subject": seconds / together, "people_per_hour": 3600 * together / (STEPS_EACH * seconds),
        "steps_each": STEPS_EACH, "latent": job.latent, "dtype": job.dtype,
    }  # fmt: skip


def compare(rows: Mapping[str, Row]) -> None:
    """Each beside the floor of its own batch, and beside one by one."""
    for row in rows.values():
        beside = rows.get(f"floor_{row['subjects']}" if row.get("subjects", 1) > 1 else "floor", {})
        if "seconds_per_step" in row and "seconds_per_step" in beside:
            row["times_own_floor"] = row["seconds_per_step"] / beside["seconds_per_step"]
    alone = rows.get("one_by_one", {}).get("seconds_per_subject")
    for row in rows.values():
        if alone and "seconds_per_subject" in row:
            row["speed_up"] = alone / row["seconds_per_subject"]


if __name__ == "__main__":
    needed = {f"{kind}_{n}": size for kind, n, size in (("bank", 4, 3), ("bank", 16, 6), ("floor", 16, 3))}
    UNetBench("bank", __file__, __doc__, list(ROWS), measure, compare, COLUMNS, AIMS, needed, steps=4).main()
