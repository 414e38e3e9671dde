"""Training of the hypernetwork with the pack's own nodes: a mean person, banks of people around it, the network.

All people start from one LiDB that was trained on many at once, see the same noise and the same scenes, keep that
LiDB's factor on the input side, and train briefly: then what differs between their numbers is the person. An image
foretells 34 % of it linearly, and with that the network starts (284 people and four factors; of 100 people and one
factor 13 %, and 3 to 4 % where these had no common start, or trained long and strongly). From there the denoising
loss is what teaches: first on the four photographs that the bank's numbers are of, and then, alone, on the same people
in scenes of all kinds, each image under the words for its scene. On four scenes that are the same for everybody,
under one prompt, it took the scenes for the person (six people, 4000 steps: identity 0.43, and prompt fidelity 0.58).
The network shipped had the common factor as it was in the first part, and learned it in the second.

Then the four photographs once more, each under its own words and on lower levels, where scenes of all kinds had left
likeness behind: these show the person better, and follow the prompt less. A part of that way in weights keeps much of
the first and loses little of the second (Wortsman et al. 2022, WiSE-FT, arXiv 2109.01903). None, a quarter, half and
all of it gave six people 0.43, 0.44, 0.46, 0.46 of identity as predicted, and 0.97, 0.97, 0.98, 0.90 of what the
prompts name; after forty steps on top 0.55, 0.56, 0.57, 0.55, and 0.96, 0.95, 0.92, 0.78. Shipped is a quarter,
which leaves forty steps on top most of their prompt fidelity.

Two things make the common factor enough for a person: four of them a layer instead of one, and the middle noise levels
alone. Of six people, 150 steps each, identity is 0.17 with one factor, 0.26 with four, and 0.36 with four on the levels
of :data:`LEVELS`, which are the ones where a face is decided.
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
from .people import draw, learned, scenes
from .trained import LIDB

Call = Callable[..., tuple[Any, ...]]
MEAN_FROM = 1 << 24
"""Number of the first person that the mean is made of: none of the bank's."""


@dataclass(frozen=True)
class Course:
    """How much of each.

    Args:
        many, together: people that the mean is made of, and images of theirs in one step.
        mean_steps: of the mean.
        people, side_by_side: in the bank, and in one batch of it.
        steps: of each person.
        network: steps of the hypernetwork on the photographs.
        scenes: images of each person beside these.
        further: steps with them, in courses of the rate one after the other.
        closer: steps on the photographs under their own words.
    """

    many: int = 48
    together: int = 16
    mean_steps: int = 150
    people: int = 3000
    side_by_side: int = 50
    steps: int = 60
    network: int = 4000
    scenes: int = 6
    further: tuple[int, ...] = (4000, 2300)
    closer: int = 2000


COURSE = Course()
RATE_OF_PERSON, RATE_OF_NETWORK = 2e-2, 1e-3
WEIGHT_LOSS = 0.3
"""On the photographs; after them the bank's numbers, which predictions are better than by then, say nothing."""
WIDTH, REFINEMENTS, BATCH = 64, 2, 32
LEVELS, LEVELS_CLOSER = {"noise_low": 0.3, "noise_high": 0.9}, {"noise_low": 0.1, "noise_high": 0.85}
SHARE = 0.25
"""Of the way to where the photographs under their own words take the network."""
MEASURED = ("loss_", "explained", "final_loss", "taken_at_step")
"""How facts begin that hold for the weights at the end of a training alone."""
OPTIONS = {"preview_every": 0, "checkpoint_every": 100, "lr_scheduler": "cosine", **LEVELS}


def train(folder: Path, course: Course = COURSE) -> Any:
    """The trained hypernetwork; what is done of it is in `folder`, and an unfinished one there is continued."""
    call = caller()
    with _comfyui_in(folder):
        base = load(folder / f"small_world_{digest(read(WEIGHTS))}.safetensors")
        mean = _kept_mean(call, base, folder, course)
        network = _network(call, base, _photographs(call, base, folder, course, mean), course.network, WEIGHT_LOSS)
        network = further(call, base, folder, course, mean, network)
        return closer(call, base, folder, course, mean, network)


def further(call: Call, base: Loaded, folder: Path, course: Course, mean: Any, network: Any) -> Any:
    """``network``, trained on scenes of all kinds as well."""
    bank, photographs = _scenes(call, base, folder, course, mean), len(REFERENCES)
    for steps in course.further:
        network = _network(call, base, bank, steps, 0.0, input_pictures=photographs, start_from=network)
    return network


def closer(call: Call, base: Loaded, folder: Path, course: Course, mean: Any, network: Any) -> Any:
    """``network``, a part of the way to where the photographs under their own words take it."""
    bank = _photographs_in_words(call, base, folder, course, mean)
    close = _network(call, base, bank, course.closer, 0.0, levels=LEVELS_CLOSER, start_from=network)
    return part_of_the_way(network, close, SHARE)


@torch.no_grad()
def part_of_the_way(start: Any, end: Any, share: float) -> Any:
    """Every weight ``start + share (end - start)``; the rest is ``end``'s, without what was measured of its weights."""
    there, weights = end.network.copy(), start.network.state_dict()
    for name, value in there.state_dict().items():
        value.copy_(weights[name].lerp(value, share))
    facts = {name: fact for name, fact in end.metadata.items() if not name.startswith(MEASURED)}
    return replace(end, network=there, metadata=facts | {"share_of_the_way": share})


@contextmanager
def _comfyui_in(folder: Path) -> Iterator[None]:
    """ComfyUI's folders of input and output are below `folder`."""
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
    call: Call, base: Loaded, bank: Any, steps: int, weight_loss: float, levels: Any = LEVELS, **inputs: Any
) -> Any:
    (options,) = call("TrainingOptions", **OPTIONS | levels, warmup_steps=steps // 80)
    network, _, report = call(
        "TrainHyperNetwork", model=base.model, clip=base.clip, clip_vision=kept(), bank=bank, steps=steps,
        learning_rate=RATE_OF_NETWORK, batch_size=BATCH, refinements=REFINEMENTS, width=WIDTH, weight_loss=weight_loss,
        options=options, **inputs,
    )  # fmt: skip
    print(report, flush=True)
    return network


def _photographs(call: Call, base: Loaded, folder: Path, course: Course, mean: Any) -> Any:
    """A bank of the four photographs of each person, under one prompt."""
    draw(learned(course.people), lambda _: REFERENCES, folder / "input" / "people")
    return _bank(call, base, "people", course, mean, course.steps, captions=False)


def _scenes(call: Call, base: Loaded, folder: Path, course: Course, mean: Any) -> Any:
    """A bank of these and of other scenes, each under its own words, whose numbers are not learned from."""

    def views(number: int) -> tuple[Scene, ...]:
        return (*REFERENCES, *scenes(number, course.scenes))

    draw(learned(course.people), views, folder / "input" / "scenes")
    return _bank(call, base, "scenes", course, mean, 1, captions=True)


def _photographs_in_words(call: Call, base: Loaded, folder: Path, course: Course, mean: Any) -> Any:
    """A bank of the four photographs, each under its own words, whose numbers are not learned from."""
    draw(learned(course.people), lambda _: REFERENCES, folder / "input" / "named")
    return _bank(call, base, "named", course, mean, 1, captions=True)


def _bank(call: Call, base: Loaded, name: str, course: Course, mean: Any, steps: int, captions: bool) -> Any:
    (method,), (options,) = call("MethodLiDB", **LIDB, learning_rate=RATE_OF_PERSON), call("TrainingOptions", **OPTIONS)
    bank, report = call(
        "BuildBank", model=base.model, clip=base.clip, vae=base.vae, folder=name, method=method, prompt=PROMPT,
        steps=steps, subjects_per_batch=course.side_by_side, seed=0, resolution=64, options=options, start_from=mean,
        shared_input=True, captions=captions,
    )  # fmt: skip
    print(report, flush=True)
    return bank


def _kept_mean(call: Call, base: Loaded, folder: Path, course: Course) -> Any:
    """The mean person in `folder`, trained if it is not there: a bank grows around the same one only."""
    load_pack()
    from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
    from hyperbooth.trainers.engine.run_hash import run_hash

    how = (LIDB, RATE_OF_PERSON, OPTIONS, course.many, course.together, course.mean_steps)
    path = folder / f"mean_{run_hash(read(WEIGHTS), *how)[:12]}.safetensors"
    if not path.exists():
        save_adapter(_mean(call, base, course), path)
    return load_adapter(path)


def _mean(call: Call, base: Loaded, course: Course) -> Any:
    """A LiDB of many people at once."""
    people = learned(course.many, MEAN_FROM)
    images = render_batch([shown for shown in people for _ in REFERENCES], list(REFERENCES) * len(people))
    (method,), (options,) = call("MethodLiDB", **LIDB, learning_rate=RATE_OF_PERSON), call("TrainingOptions", **OPTIONS)
    (subject,) = call(
        "Subject", images=torch.from_numpy(images).float() / 255, vae=base.vae, clip=base.clip, prompt=PROMPT,
        resolution=64,
    )  # fmt: skip
    mean, _, report = call(
        "Train", model=base.model, subject=subject, method=method, steps=course.mean_steps,
        batch_size=course.together, clip=base.clip, options=options,
    )  # fmt: skip
    print(report, flush=True)
    return mean
