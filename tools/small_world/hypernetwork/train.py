"""Train the hypernetwork with the pack's own nodes: a mean adapter, banks of people around it, the network.

All people start from one LiDB that was trained on many people at once, share the noise and the scenes, keep that LiDB's
down factor, and train briefly, so that their parameters differ by the person only. A linear regression from the image
explains 34 % of the variance of the parameters and initializes the network (284 people, rank 4; with 100 people and
rank 1 it explains 13 %, and 3 to 4 % without a common start or after long training). From there the denoising loss
trains the network: first on the four reference images from which the bank's parameters were trained, and then, alone,
on the same people in random scenes, each image with the caption of its scene. With four scenes that are the same for
all people under one prompt, the network confused scene and person (six people, 4000 steps: identity 0.43, prompt
fidelity 0.58). The shipped network kept the shared down factor in the first part, and learned it in the second.

Last come the four reference images again, each with its own caption and at lower noise levels: this improves identity,
which the random scenes had reduced, at the cost of prompt fidelity. An interpolation of the weights keeps much of the
first and loses little of the second (Wortsman et al. 2022, WiSE-FT, arXiv 2109.01903). Interpolation by 0, 0.25, 0.5
and 1 gave six people an identity of 0.43, 0.44, 0.46, 0.46 as predicted, and prompt fidelity of 0.97, 0.97, 0.98, 0.90;
after forty steps on top 0.55, 0.56, 0.57, 0.55, and 0.96, 0.95, 0.92, 0.78. The shipped network uses 0.25, which leaves
the result of forty steps most of its prompt fidelity.

The shared down factor suffices for a person because of rank 4 instead of 1, and of middle noise levels alone. For six
people, 150 steps each, identity is 0.17 with rank 1, 0.26 with rank 4, and 0.36 with rank 4 and the noise levels of
:data:`NOISE_RANGE`, which determine a face.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tools.comfy_harness.call_node import caller
from tools.comfy_harness.import_pack import load_pack

from ..base.checkpoint import WEIGHTS
from ..base.model import Loaded, load
from ..drawing.render import render_batch
from ..scene.scene import Scene
from ..scene.task import PROMPT, REFERENCES
from ..vision.encoder import kept
from ..weight_files import digest, read
from .people import draw, scenes, training_people
from .trained import LIDB

Call = Callable[..., tuple[Any, ...]]
MEAN_FROM = 1 << 24
"""Seed of the first person of the mean adapter; none of them is in the bank."""


@dataclass(frozen=True)
class TrainingPlan:
    """Define sizes and steps of all parts of the training.

    Args:
        mean_people: people of the mean adapter.
        mean_batch: images per step of the mean adapter.
        mean_steps: steps of the mean adapter.
        people: people in the bank.
        subjects_per_batch: people per batch of the bank.
        steps: steps per person.
        network: steps of the hypernetwork on the reference images.
        scenes: images of each person in random scenes.
        further: steps with these scenes; each entry is one learning-rate schedule.
        closer: steps on the reference images with their own captions.
    """

    mean_people: int = 48
    mean_batch: int = 16
    mean_steps: int = 150
    people: int = 3000
    subjects_per_batch: int = 50
    steps: int = 60
    network: int = 4000
    scenes: int = 6
    further: tuple[int, ...] = (4000, 2300)
    closer: int = 2000


TRAINING_PLAN = TrainingPlan()
PERSON_LEARNING_RATE, NETWORK_LEARNING_RATE = 2e-2, 1e-3
WEIGHT_LOSS = 0.3
"""Weight on the reference images; afterwards it is 0, since predictions are better than the bank's parameters."""
WIDTH, REFINEMENTS, BATCH = 64, 2, 32
NOISE_RANGE, FINAL_NOISE_RANGE = {"noise_low": 0.3, "noise_high": 0.9}, {"noise_low": 0.1, "noise_high": 0.85}
INTERPOLATION = 0.25
"""Interpolation weight of the network trained last, on the reference images with their captions."""
MEASURED = ("loss_", "explained", "final_loss", "taken_at_step")
"""Prefixes of metadata that holds only for the weights at the end of a training."""
OPTIONS = {"preview_every": 0, "checkpoint_every": 100, "lr_scheduler": "cosine", **NOISE_RANGE}


def train(folder: Path, plan: TrainingPlan = TRAINING_PLAN) -> Any:
    """Train the hypernetwork; its state is in `folder`, and an unfinished training there is resumed."""
    call = caller()
    with _comfyui_in(folder):
        base = load(folder / f"small_world_{digest(read(WEIGHTS))}.safetensors")
        mean = _cached_mean(call, base, folder, plan)
        network = _network(call, base, _reference_bank(call, base, folder, plan, mean), plan.network, WEIGHT_LOSS)
        network = further(call, base, folder, plan, mean, network)
        return closer(call, base, folder, plan, mean, network)


def further(call: Call, base: Loaded, folder: Path, plan: TrainingPlan, mean: Any, network: Any) -> Any:
    """Return ``network`` trained further on random scenes."""
    bank, inputs = _scene_bank(call, base, folder, plan, mean), len(REFERENCES)
    for steps in plan.further:
        network = _network(call, base, bank, steps, 0.0, input_pictures=inputs, start_from=network)
    return network


def closer(call: Call, base: Loaded, folder: Path, plan: TrainingPlan, mean: Any, network: Any) -> Any:
    """Return ``network`` interpolated towards the one trained further on the reference images with their captions."""
    bank = _captioned_reference_bank(call, base, folder, plan, mean)
    close = _network(call, base, bank, plan.closer, 0.0, noise_range=FINAL_NOISE_RANGE, start_from=network)
    return interpolate_weights(network, close, INTERPOLATION)


@torch.no_grad()
def interpolate_weights(start: Any, end: Any, share: float) -> Any:
    """Return ``end`` with weights ``start + share (end - start)``, without metadata measured with its weights."""
    between, weights = end.network.copy(), start.network.state_dict()
    for name, value in between.state_dict().items():
        value.copy_(weights[name].lerp(value, share))
    metadata = {name: value for name, value in end.metadata.items() if not name.startswith(MEASURED)}
    return replace(end, network=between, metadata=metadata | {"share_of_the_way": share})


@contextmanager
def _comfyui_in(folder: Path) -> Iterator[None]:
    """Set ComfyUI's input and output folders to subfolders of `folder`."""
    import folder_paths

    before = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    for name, use in (("input", folder_paths.set_input_directory), ("output", folder_paths.set_output_directory)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        use(str(folder / name))
    try:
        yield
    finally:
        folder_paths.set_input_directory(before[0])
        folder_paths.set_output_directory(before[1])


def _network(
    call: Call, base: Loaded, bank: Any, steps: int, weight_loss: float, noise_range: Any = NOISE_RANGE, **inputs: Any
) -> Any:
    (options,) = call("TrainingOptions", **OPTIONS | noise_range, warmup_steps=steps // 80)
    network, _, report = call(
        "TrainHyperNetwork", model=base.model, clip=base.clip, clip_vision=kept(), bank=bank, steps=steps,
        learning_rate=NETWORK_LEARNING_RATE, batch_size=BATCH, refinements=REFINEMENTS, width=WIDTH,
        weight_loss=weight_loss, options=options, **inputs,
    )  # fmt: skip
    print(report, flush=True)
    return network


def _reference_bank(call: Call, base: Loaded, folder: Path, plan: TrainingPlan, mean: Any) -> Any:
    """Build a bank of the four reference images of each person, with one prompt."""
    draw(training_people(plan.people), lambda _: REFERENCES, folder / "input" / "people")
    return _bank(call, base, "people", plan, mean, plan.steps, captions=False)


def _scene_bank(call: Call, base: Loaded, folder: Path, plan: TrainingPlan, mean: Any) -> Any:
    """Build a bank of the reference images and random scenes with captions, whose parameters are not used."""

    def views(number: int) -> tuple[Scene, ...]:
        return (*REFERENCES, *scenes(number, plan.scenes))

    draw(training_people(plan.people), views, folder / "input" / "scenes")
    return _bank(call, base, "scenes", plan, mean, 1, captions=True)


def _captioned_reference_bank(call: Call, base: Loaded, folder: Path, plan: TrainingPlan, mean: Any) -> Any:
    """Build a bank of the four reference images with captions, whose parameters are not used."""
    draw(training_people(plan.people), lambda _: REFERENCES, folder / "input" / "named")
    return _bank(call, base, "named", plan, mean, 1, captions=True)


def _bank(call: Call, base: Loaded, name: str, plan: TrainingPlan, mean: Any, steps: int, captions: bool) -> Any:
    (method,) = call("MethodLiDB", **LIDB, learning_rate=PERSON_LEARNING_RATE)
    (options,) = call("TrainingOptions", **OPTIONS)
    bank, report = call(
        "BuildBank", model=base.model, clip=base.clip, vae=base.vae, folder=name, method=method, prompt=PROMPT,
        steps=steps, subjects_per_batch=plan.subjects_per_batch, seed=0, resolution=64, options=options,
        start_from=mean, shared_input=True, captions=captions,
    )  # fmt: skip
    print(report, flush=True)
    return bank


def _cached_mean(call: Call, base: Loaded, folder: Path, plan: TrainingPlan) -> Any:
    """Return the mean adapter in `folder`, trained unless it exists: a bank is extended around the same mean only."""
    load_pack()
    from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
    from hyperbooth.trainers.engine.run_hash import run_hash

    settings = (LIDB, PERSON_LEARNING_RATE, OPTIONS, plan.mean_people, plan.mean_batch, plan.mean_steps)
    path = folder / f"mean_{run_hash(read(WEIGHTS), *settings)[:12]}.safetensors"
    if not path.exists():
        save_adapter(_mean(call, base, plan), path)
    return load_adapter(path)


def _mean(call: Call, base: Loaded, plan: TrainingPlan) -> Any:
    """Train a LiDB on many people at once."""
    people = training_people(plan.mean_people, MEAN_FROM)
    images = render_batch([shown for shown in people for _ in REFERENCES], list(REFERENCES) * len(people))
    (method,) = call("MethodLiDB", **LIDB, learning_rate=PERSON_LEARNING_RATE)
    (options,) = call("TrainingOptions", **OPTIONS)
    (subject,) = call(
        "Subject", images=torch.from_numpy(images).float() / 255, vae=base.vae, clip=base.clip, prompt=PROMPT,
        resolution=64,
    )  # fmt: skip
    mean, _, report = call(
        "Train", model=base.model, subject=subject, method=method, steps=plan.mean_steps,
        batch_size=plan.mean_batch, clip=base.clip, options=options,
    )  # fmt: skip
    print(report, flush=True)
    return mean
