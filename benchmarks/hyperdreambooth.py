"""Evaluate HyperDreamBooth in the small world: from one image, by prediction, forty steps, and without prediction.

Every row personalizes the same held-out people from one image each; the oracle judges. See README.md.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from common.comparison import Comparison
from common.harness import Aim
from common.methods import FALLING, Ours, PersonalizedModel, Task, file_bytes, lora, untouched
from common.oracle_metrics import CODED, REAL
from common.result_cache import digest
from torch import Tensor

from tools.small_world.hypernetwork import trained as trained_hypernetwork
from tools.small_world.scene import task
from tools.small_world.vision import encoder

STEPS, RATE, RANK = 40, 3e-3, 8
"""Settings of fast fine-tuning."""


@dataclass(frozen=True)
class OneImage:
    """Call a method with the first image of the person only."""

    method: Any

    def __call__(self, task: Task, references: Tensor) -> PersonalizedModel:
        return self.method(task, references[:1])


@dataclass(frozen=True)
class Predicted:
    """Predict an adapter from the first image by the hypernetwork; then, optionally, train a LoRA on top.

    Args:
        network: digest of the hypernetwork's file.
        stranger: held-out person, none of those measured, whose image is given instead: the shuffled baseline.
        mean: whether to take the mean prediction instead.
        refinements: refinement iterations; 0 for the number that the network was trained with.
        steps: steps of the LoRA; 0 for none.
        rank: rank of the LoRA.
        rate: learning rate of the LoRA.
    """

    network: str
    stranger: int | None = None
    mean: bool = False
    refinements: int = 0
    steps: int = 0
    rank: int = RANK
    rate: float = RATE

    def __call__(self, task: Task, references: Tensor) -> PersonalizedModel:
        network(self.refinements), vision()  # loaded before the clock runs
        forget_runs()
        adapter, seconds = timed(lambda: self._adapter(task, references[:1]))
        base, call = task.base, task.call
        model, clip = call("Apply", model=base.model, adapter=adapter, strength_model=1.0, clip=base.clip)
        parameter_count = sum(parameter.numel() for parameter in adapter.parameters())
        return PersonalizedModel(
            model, clip, task.prompt, seconds, self.steps, 4 * self.steps, parameter_count, file_bytes(adapter)
        )

    def _adapter(self, task: Task, image: Tensor) -> Any:
        adapter = self._predicted(task, image)
        if not self.steps:
            return adapter
        base, call = task.base, task.call
        (subject,) = call(
            "Subject", images=image, vae=base.vae, clip=base.clip, prompt=task.prompt, resolution=64
        )  # fmt: skip
        (options,) = call("TrainingOptions", preview_every=0, checkpoint_every=0, **FALLING)
        return call(
            "FastFinetune", model=base.model, subject=subject, adapter=adapter, rank=self.rank, steps=self.steps,
            learning_rate=self.rate, seed=0, clip=base.clip, options=options, batch_size=4,
        )[0]  # fmt: skip

    def _predicted(self, task: Task, image: Tensor) -> Any:
        predictor, encoder = network(self.refinements), vision()
        if self.mean:
            return mean_of(predictor)
        shown = image if self.stranger is None else image_of(self.stranger)
        return task.call("Predict", hypernetwork=predictor, clip_vision=encoder, image=shown, model=task.base.model)[0]


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of ``make``, and the seconds that it took."""
    began = time.perf_counter()
    made = make()
    return made, time.perf_counter() - began


def forget_runs() -> None:
    """Delete training states: *Fast Fine-tune* would resume an earlier run of the same inputs."""
    from hyperbooth.nodes.bridge.folders import state_folder

    shutil.rmtree(state_folder(), ignore_errors=True)


@cache
def network(refinements: int) -> Any:
    """Return the shipped hypernetwork; 0 refinements: as many as it was trained with."""
    predictor = trained_hypernetwork.kept()
    return replace(predictor, network=predictor.network.copy(refinements)) if refinements else predictor


@cache
def vision() -> Any:
    """Return the image encoder of the hypernetwork."""
    return encoder.kept()


def image_of(number: int) -> Tensor:
    """Return the first image of held-out person ``number``, [1, 64, 64, 3]."""
    return task.references(task.subjects(number + 1)[number], 1)


def mean_of(predictor: Any) -> Any:
    """Return the mean prediction of the hypernetwork as an adapter stack."""
    from hyperbooth.models.adapters.stack import AdapterStack

    return AdapterStack((predictor.network.layout.unpack(predictor.network.mean_prediction().detach()),))


NETWORK = (
    digest(trained_hypernetwork.WEIGHTS.read_bytes()) if trained_hypernetwork.WEIGHTS.exists() else "not trained yet"
)
LIDB = Ours("MethodLiDB", {**trained_hypernetwork.LIDB, "learning_rate": 1e-2}, options=FALLING)
"""LiDB on the layers and bases that the hypernetwork predicts for."""
METHODS: dict[str, Any] = {
    "base": untouched,
    "mean": Predicted(NETWORK, mean=True),
    "wrong": Predicted(NETWORK, stranger=0),
    "predicted": Predicted(NETWORK),
    "predicted_1": Predicted(NETWORK, refinements=1),
    "fast": Predicted(NETWORK, steps=STEPS),
    **{f"fast_rank_{rank}": Predicted(NETWORK, steps=STEPS, rank=rank) for rank in (1, 32)},
    "fast_mean": Predicted(NETWORK, mean=True, steps=STEPS),
    **{f"lora_{steps}": OneImage(lora(RANK, RATE, steps=steps)) for steps in (STEPS, 400, 1000)},
    "lidb_100": OneImage(replace(LIDB, steps=100)),
    "lidb": OneImage(replace(LIDB, steps=400)),
    CODED: CODED,
    REAL: REAL,
}
AIMS = (
    *(Aim("predicted", f"identity_to_{other}", 0.0, least=True) for other in ("base", "mean", "wrong")),
    Aim("predicted", "identity_of_lidb", 0.6, least=True),
    Aim("fast", "identity_to_lora_1000", 0.0, least=True),
    Aim("fast", "prompt_fidelity_to_lora_1000", 0.0, least=True),
    Aim("fast", "seconds_of_lora_1000", 0.05),
)
OTHERS = ("base", "mean", "wrong", "lidb", "lora_1000")

if __name__ == "__main__":
    Comparison("hyperdreambooth", __doc__, METHODS, AIMS, OTHERS, check=trained_hypernetwork.kept).main()
