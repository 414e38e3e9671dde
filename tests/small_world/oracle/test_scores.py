"""Test scores of the generator's own images, which are 1 or 0 by definition."""

from dataclasses import replace

import pytest
import torch

from tools.small_world.oracle.scores import PLAIN, Judge, drawn, scene_of, spread_of_images
from tools.small_world.oracle.trained import kept
from tools.small_world.scene.scene import Scene
from tools.small_world.scene.task import CAPTIONS, REFERENCES, personal, references, subjects

PEOPLE = subjects(24)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(kept(), REFERENCES)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_identity_is_one_for_the_person_and_zero_for_others(judge: Judge, caption: str) -> None:
    images = drawn(PEOPLE, scene_of(caption))
    own = [judge.identity(images[n : n + 1], references(one), caption) for n, one in enumerate(PEOPLE)]
    other = [judge.identity(images[n - 1 : n], references(one), caption) for n, one in enumerate(PEOPLE) if n]
    assert torch.tensor(own).mean().item() == pytest.approx(1, abs=0.1)
    assert torch.tensor(other).mean().item() == pytest.approx(0, abs=0.15)


def test_prompt_fidelity_is_the_share_of_what_is_there(judge: Judge) -> None:
    images = drawn(PEOPLE, Scene("snow", "sketch", "smiling"))
    assert judge.prompt_fidelity(images, "a face in the snow, smiling, as a sketch") > 0.95
    assert judge.prompt_fidelity(images, "a face on the beach, smiling, as a sketch") == pytest.approx(2 / 3, abs=0.05)
    assert judge.prompt_fidelity(images, "a vase on the beach, as a photo") < 0.05


def test_people_who_are_one_are_no_spread(judge: Judge) -> None:
    assert judge.people_spread(drawn(PEOPLE, PLAIN)) == pytest.approx(1, abs=0.15)
    assert judge.people_spread(drawn([PEOPLE[0]] * 8, PLAIN)) == pytest.approx(0, abs=1e-4)
    noise = torch.rand(8, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    assert judge.people_spread(noise) < 0.3


def test_diversity_is_one_for_the_generator_and_zero_for_one_picture(judge: Judge) -> None:
    own = judge.generator_images(PEOPLE[0], CAPTIONS[0], 60)
    assert judge.diversity(own, CAPTIONS[0], PEOPLE[0]) == pytest.approx(1, abs=0.1)
    assert judge.diversity(own[:1].expand(4, -1, -1, -1), CAPTIONS[0], PEOPLE[0]) == 0


def test_spread_of_pictures_is_the_distance_of_their_colours() -> None:
    black, white = torch.zeros(1, 64, 64, 3), torch.ones(1, 64, 64, 3)
    assert spread_of_images(torch.cat([black, white])) == pytest.approx(1)
    assert spread_of_images(torch.cat([black, white / 2])) == pytest.approx(0.5)


def test_references_show_no_scene_that_is_asked_for() -> None:
    asked = {scene_of(caption) for caption in CAPTIONS}
    for name in ("background", "expression"):
        shown = {getattr(scene, name) for scene in REFERENCES} - {"neutral"}
        assert shown.isdisjoint(getattr(scene, name) for scene in asked)
    assert all(replace(scene, background="studio") != Scene() for scene in asked)
    assert personal(CAPTIONS[0]) == "a sks face in the snow, smiling"
