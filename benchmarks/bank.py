"""People per hour: subjects of a bank side by side in one batch, beside one by one and the floor.

Every row trains LiDBs, one image per subject, in a process of its own: on SD1.5's U-Net as in ``train.py`` (random
weights from one file), attention layers; and on the small world's, as its hypernetwork predicts them. See README.md for
what exactly is measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
import train
from common import harness
from common.harness import Aim, Column, Row
from common.sd15_unet import Job, UNetBench
from torch import Tensor
from train import Tick, Train

from tools.comfy_harness import import_pack
from tools.small_world.hypernetwork import trained as trained_hypernetwork
from tools.small_world.scene import task

LEARNING_RATE = 1e-3
STEPS_EACH = 100
"""Steps of a subject, for the figure of people per hour."""


@dataclass(frozen=True)
class OfUNet(Job):
    """A row on SD1.5's U-Net."""

    targets: ClassVar[str] = "attention"

    def lidb(self) -> dict[str, Any]:
        """Settings of LiDB: the paper's."""
        return {"rank": 1, "a": 100, "b": 50}


@dataclass(frozen=True)
class OfWorld(Job):
    """A row on the small world's base, whose steps are short: it runs more of them."""

    targets: ClassVar[str] = "all linear and convolution"
    MORE: ClassVar[int] = 20

    @property
    def updates(self) -> int:
        return self.MORE * self.steps + 1

    def lidb(self) -> dict[str, Any]:
        """What the world's hypernetwork predicts."""
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
        """A person's image, encoded, and the prompt."""
        base = self._base
        image = task.references(task.subjects(1)[0], 1)
        return base.vae.encode(image), base.clip.encode_from_tokens(base.clip.tokenize(task.PROMPT))


def one_by_one(job: OfUNet | OfWorld, _tick: Tick) -> Train:
    """A run of *Train Adapter* with LiDB: what each subject costs by itself."""
    return train.personalizing(job, "lidb", job.lidb(), job.targets, memory="as set")


def side_by_side(job: OfUNet | OfWorld, _tick: Tick, together: int) -> Train:
    """One batch of a bank, images encoded already."""
    model = job.model()
    import_pack.load_pack()
    from hyperbooth.models.adapters import LiDBConfig
    from hyperbooth.nodes.bridge.training_session import training_session
    from hyperbooth.trainers.config import Method, TrainingOptions
    from hyperbooth.trainers.data.dataset import Example, Subject
    from hyperbooth.trainers.subject_bank.config import BankConfig
    from hyperbooth.trainers.subject_bank.trainer import BankTrainer

    options = TrainingOptions(precision=job.dtype, memory="as set")
    method = Method(family="lidb", config=LiDBConfig(**job.lidb()), targets=job.targets, learning_rate=LEARNING_RATE)
    config = BankConfig(method=method, prompt="a photo of sks face", steps=job.updates, options=options)

    @torch.inference_mode()
    def run() -> Any:
        latent, prompt = job.data()
        cond = [[prompt, {}]]
        subjects = [Subject((Example(latent + i, cond, config.prompt),)) for i in range(together)]
        with training_session(model, options, subjects[0], batch_size=together) as bench:
            trainer = BankTrainer(config=config, start=config.start(bench.model.shapes), subjects_per_batch=together)
            return trainer.train(bench, subjects, lambda _subjects: lambda _history: None)

    return run


@dataclass(frozen=True)
class Measured:
    """A row.

    Args:
        of: which network.
        make: what runs.
        together: subjects in a step.
        floor: name of the row with two forwards of its batch.
    """

    of: type[OfUNet | OfWorld]
    make: Callable[[Any, Tick], Train]
    together: int
    floor: str


def rows_of(of: type[OfUNet | OfWorld], prefix: str, together: tuple[int, ...]) -> dict[str, Measured]:
    """One by one and so many at once, each beside its floor."""
    rows = {
        f"{prefix}floor": Measured(of, train.floor, 1, f"{prefix}floor"),
        f"{prefix}one_by_one": Measured(of, one_by_one, 1, f"{prefix}floor"),
    }
    for n in together:
        floor = f"{prefix}floor_{n}"
        rows[floor] = Measured(of, partial(train.floor, together=n), n, floor)
        rows[f"{prefix}bank_{n}"] = Measured(of, partial(side_by_side, together=n), n, floor)
    return rows


WORLD = "world_"
ROWS = rows_of(OfUNet, "", (4, 16)) | rows_of(OfWorld, WORLD, (16, 50))

COLUMNS = (
    Column("s per step", "seconds_per_step", harness.seconds),
    Column("s per subject", "seconds_per_subject", harness.seconds),
    Column("/ floor", "times_own_floor", harness.times),
    Column("faster than one by one", "speed_up", harness.times),
    Column("people per hour", "people_per_hour", lambda value: f"{value:,.1f}"),
    Column("peak GB", "peak_bytes", harness.gigabytes),
)

AIMS = tuple(Aim(name, "times_own_floor", 1.15) for name in ("bank_4", "bank_16", "world_bank_16", "world_bank_50"))
"""Against two forwards of the same batch: there is nothing to gain from a batch that forwards do not gain from it."""


def measure(name: str, job: Job) -> Row:
    """Run one row in this process."""
    row = ROWS[name]
    job = row.of(**vars(job))
    clock = harness.StepClock()
    run = row.make(job, clock.tick)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        run()
    seconds = harness.median(clock.seconds)
    return {
        "seconds_per_step": seconds, "steps": len(clock.seconds), "subjects": row.together, "peak_bytes": peak.bytes,
        "seconds_per_subject": seconds / row.together, "people_per_hour": 3600 * row.together / (STEPS_EACH * seconds),
        "steps_each": STEPS_EACH, "dtype": job.dtype,
    }  # fmt: skip


def compare(rows: Mapping[str, Row]) -> None:
    """Each beside the floor of its own batch, and beside one by one on the same network."""
    for name, row in rows.items():
        alone = f"{WORLD if ROWS[name].of is OfWorld else ''}one_by_one"
        floor, single = (rows.get(other, {}).get("seconds_per_step") for other in (ROWS[name].floor, alone))
        if "seconds_per_step" in row and floor:
            row["times_own_floor"] = row["seconds_per_step"] / floor
        if "seconds_per_step" in row and single:
            row["speed_up"] = single / row["seconds_per_subject"]


if __name__ == "__main__":
    needed = {f"{kind}_{n}": size for kind, n, size in (("bank", 4, 3), ("bank", 16, 6), ("floor", 16, 3))}
    UNetBench("bank", __file__, __doc__, list(ROWS), measure, compare, COLUMNS, AIMS, needed, steps=4).main()
