"""Measure people per hour of a subject bank: several subjects in one batch, one by one, and the floor.

Every row trains LiDBs, one image per subject, in a process of its own: on SD1.5's U-Net as in ``train.py`` (random
weights from one file), attention layers; and on the small world's, with the LiDB that its hypernetwork predicts. See
README.md for what exactly is measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
import train
from common import harness
from common.harness import Aim, Column, Row
from common.sd15_unet import RowSetup, UNetBenchmark
from torch import Tensor
from train import Tick, Train

from tools.comfy_harness import import_pack
from tools.small_world.hypernetwork import trained as trained_hypernetwork
from tools.small_world.scene import task

LEARNING_RATE = 1e-3
STEPS_EACH = 100
"""Steps per subject for the figure of people per hour."""


@dataclass(frozen=True)
class UNetSetup(RowSetup):
    """Set up a row on SD1.5's U-Net."""

    targets: ClassVar[str] = "attention"

    def lidb(self) -> dict[str, Any]:
        """Return the LiDB settings of the paper."""
        return {"rank": 1, "a": 100, "b": 50}


@dataclass(frozen=True)
class WorldSetup(RowSetup):
    """Set up a row on the small world's base; its steps are short, so it runs :attr:`MORE` times as many."""

    targets: ClassVar[str] = "all linear and convolution"
    MORE: ClassVar[int] = 20

    @property
    def updates(self) -> int:
        return self.MORE * self.steps + 1

    def lidb(self) -> dict[str, Any]:
        """Return the settings of the LiDB that the world's hypernetwork predicts."""
        kept = trained_hypernetwork.LIDB
        return {name: kept[name] for name in ("rank", "a", "b")}

    @cached_property
    def _base(self) -> Any:
        import_pack.import_comfyui()
        from tools.small_world.base.model import load

        return load(self.weights.with_name("small_world.safetensors"))

    def model(self) -> Any:
        return self._base.model

    @torch.inference_mode()
    def data(self) -> tuple[Tensor, Tensor]:
        """Return the latent of one image of a person, and the conditioning of the prompt."""
        base = self._base
        image = task.references(task.subjects(1)[0], 1)
        return base.vae.encode(image), base.clip.encode_from_tokens(base.clip.tokenize(task.PROMPT))


def one_by_one(setup: UNetSetup | WorldSetup, _tick: Tick) -> Train:
    """Return a run of *Train Adapter* with LiDB: the cost of one subject trained alone."""
    return train.personalizing(setup, "lidb", setup.lidb(), setup.targets, memory="as set")


def batched(setup: UNetSetup | WorldSetup, _tick: Tick, batch_size: int) -> Train:
    """Return a run that trains one batch of a bank on latents."""
    model = setup.model()
    import_pack.load_pack()
    from hyperbooth.models.adapters import LiDBConfig
    from hyperbooth.nodes.bridge.training_session import training_session
    from hyperbooth.trainers.config import Method, TrainingOptions
    from hyperbooth.trainers.data.dataset import Example, Subject
    from hyperbooth.trainers.subject_bank.config import BankConfig
    from hyperbooth.trainers.subject_bank.trainer import BankTrainer

    options = TrainingOptions(precision=setup.dtype, memory="as set")
    method = Method(
        family="lidb", config=LiDBConfig(**setup.lidb()), targets=setup.targets, learning_rate=LEARNING_RATE
    )
    config = BankConfig(method=method, prompt="a photo of sks face", steps=setup.updates, options=options)

    @torch.inference_mode()
    def run() -> Any:
        latent, prompt = setup.data()
        cond = [[prompt, {}]]
        subjects = [Subject((Example(latent + i, cond, config.prompt),)) for i in range(batch_size)]
        with training_session(model, options, subjects[0], batch_size=batch_size) as session:
            trainer = BankTrainer(
                config=config, start=config.start(session.model.shapes), subjects_per_batch=batch_size
            )
            return trainer.train(session, subjects, lambda _subjects: lambda _history: None)

    return run


@dataclass(frozen=True)
class RowSpec:
    """Describe one row.

    Args:
        setup_class: selects the network.
        make: makes the run from the setup and the clock's tick.
        batch_size: subjects per step.
        floor: name of the row with two forwards of the same batch.
    """

    setup_class: type[UNetSetup | WorldSetup]
    make: Callable[[Any, Tick], Train]
    batch_size: int
    floor: str


def rows_of(setup_class: type[UNetSetup | WorldSetup], prefix: str, batch_sizes: tuple[int, ...]) -> dict[str, RowSpec]:
    """Return the rows of one network: one by one and each batch size, each with its floor."""
    rows = {
        f"{prefix}floor": RowSpec(setup_class, train.floor, 1, f"{prefix}floor"),
        f"{prefix}one_by_one": RowSpec(setup_class, one_by_one, 1, f"{prefix}floor"),
    }
    for n in batch_sizes:
        floor = f"{prefix}floor_{n}"
        rows[floor] = RowSpec(setup_class, partial(train.floor, batch_size=n), n, floor)
        rows[f"{prefix}bank_{n}"] = RowSpec(setup_class, partial(batched, batch_size=n), n, floor)
    return rows


WORLD = "world_"
ROWS = rows_of(UNetSetup, "", (4, 16)) | rows_of(WorldSetup, WORLD, (16, 50))

COLUMNS = (
    Column("s per step", "seconds_per_step", harness.seconds),
    Column("s per subject", "seconds_per_subject", harness.seconds),
    Column("/ floor", "times_own_floor", harness.times),
    Column("faster than one by one", "speed_up", harness.times),
    Column("people per hour", "people_per_hour", lambda value: f"{value:,.1f}"),
    Column("peak GB", "peak_bytes", harness.gigabytes),
)

AIMS = tuple(Aim(name, "times_own_floor", 1.15) for name in ("bank_4", "bank_16", "world_bank_16", "world_bank_50"))
"""Relative to two forwards of the same batch, since a training step gains no more from batching than forwards do."""


def measure(name: str, setup: RowSetup) -> Row:
    """Run one row in this process and return its figures."""
    row = ROWS[name]
    setup = row.setup_class(**vars(setup))
    clock = harness.StepClock()
    run = row.make(setup, clock.tick)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        run()
    seconds = harness.median(clock.seconds)
    return {
        "seconds_per_step": seconds, "steps": len(clock.seconds), "subjects": row.batch_size, "peak_bytes": peak.bytes,
        "seconds_per_subject": seconds / row.batch_size,
        "people_per_hour": 3600 * row.batch_size / (STEPS_EACH * seconds), "steps_each": STEPS_EACH,
        "dtype": setup.dtype,
    }  # fmt: skip


def compare(rows: Mapping[str, Row]) -> None:
    """Add each row's ratios to the floor of its batch and to one by one on the same network."""
    for name, row in rows.items():
        alone = f"{WORLD if ROWS[name].setup_class is WorldSetup else ''}one_by_one"
        floor, single = (rows.get(other, {}).get("seconds_per_step") for other in (ROWS[name].floor, alone))
        if "seconds_per_step" in row and floor:
            row["times_own_floor"] = row["seconds_per_step"] / floor
        if "seconds_per_step" in row and single:
            row["speed_up"] = single / row["seconds_per_subject"]


if __name__ == "__main__":
    needed = {f"{kind}_{n}": size for kind, n, size in (("bank", 4, 3), ("bank", 16, 6), ("floor", 16, 3))}
    UNetBenchmark("bank", __file__, __doc__, list(ROWS), measure, compare, COLUMNS, AIMS, needed, steps=4).main()
