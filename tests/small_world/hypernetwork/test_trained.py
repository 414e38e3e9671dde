"""Test the repository's hypernetwork: it predicts a held-out person from one image."""

from statistics import mean
from typing import Any

import pytest

from tools.comfy_harness.call_node import caller
from tools.small_world.base.model import Loaded, load, sample
from tools.small_world.hypernetwork.train import INTERPOLATION, MEASURED, TRAINING_PLAN
from tools.small_world.hypernetwork.trained import WEIGHTS, kept
from tools.small_world.oracle.scores import Judge
from tools.small_world.oracle.trained import kept as oracle
from tools.small_world.scene.task import CAPTIONS, REFERENCES, personal, references, subjects
from tools.small_world.vision.encoder import kept as vision

PEOPLE, SCENES = 4, CAPTIONS[:2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tmp_path_factory.mktemp("world") / "small_world.safetensors")


def test_it_is_small() -> None:
    assert WEIGHTS.stat().st_size < 10e6


def test_it_is_of_the_course() -> None:
    metadata, references_each = kept().metadata, len(REFERENCES)
    assert metadata["steps"] == TRAINING_PLAN.network + sum(TRAINING_PLAN.further) + TRAINING_PLAN.closer
    assert metadata["share_of_the_way"] == INTERPOLATION and not [
        name for name in metadata if name.startswith(MEASURED)
    ]
    assert (metadata["bank"], metadata["pictures"]) == ("named", TRAINING_PLAN.people * references_each)


def test_it_predicts_the_person_of_the_picture_and_no_other(base: Any) -> None:
    call, judge, predictor = caller(), Judge(oracle(), REFERENCES), kept()
    views = [references(shown) for shown in subjects(PEOPLE)]

    def identity(seen: int, of: int) -> float:
        """Return the identity with person `of` of samples with the adapter predicted from person `seen`."""
        inputs = {"hypernetwork": predictor, "clip_vision": vision(), "image": views[seen][:1], "model": base.model}
        (adapter,) = call("Predict", **inputs)
        model, clip = call("Apply", model=base.model, adapter=adapter, strength_model=1.0, clip=base.clip)
        prompts = [personal(caption) for caption in SCENES for _ in range(3)]
        images = sample(Loaded(model, clip, base.vae), prompts, seed=of).unflatten(0, (len(SCENES), -1))
        return mean(judge.identity(made, views[of], caption) for made, caption in zip(images, SCENES, strict=True))

    own = mean(identity(person, person) for person in range(PEOPLE))
    shuffled = mean(identity((person + 1) % PEOPLE, person) for person in range(PEOPLE))
    assert own > 0.3 and own - shuffled > 0.3, (own, shuffled)
