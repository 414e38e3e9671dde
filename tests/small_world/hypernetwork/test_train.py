"""Test that a hypernetwork for the world's base is trained from drawn people, and saved."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tools.small_world.hypernetwork import people
from tools.small_world.hypernetwork.train import REFINEMENTS, TrainingPlan, interpolate_weights, train
from tools.small_world.hypernetwork.trained import keep, kept
from tools.small_world.scene.captions import WORDINGS
from tools.small_world.scene.identity import Identity
from tools.small_world.scene.people import is_held_out
from tools.small_world.scene.scene import Scene
from tools.small_world.scene.task import CAPTIONS, PROMPT

FEW = TrainingPlan(
    mean_people=2, mean_batch=2, mean_steps=1, people=6, subjects_per_batch=3, steps=1, network=1, scenes=1,
    further=(1, 1), closer=1,
)  # fmt: skip


def test_it_is_trained_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    keep(train(tmp_path, FEW), path)
    predictor = kept(path)
    assert path.stat().st_size < 10e6
    assert predictor.prompt == PROMPT and predictor.network.config.refinements == REFINEMENTS
    assert predictor.metadata["steps"] == 4 and predictor.metadata["people"] == 4
    tokens = torch.zeros(65, predictor.network.encoder_width)
    assert len(predictor.predict([tokens]).adapters[0].layers) == len(predictor.network.layout.targets)
    shutil.rmtree(tmp_path / "output" / "hyperbooth_states")
    (mean,) = tmp_path.glob("mean_*.safetensors")
    made = mean.stat().st_mtime_ns
    more = train(tmp_path, replace(FEW, people=9))
    assert mean.stat().st_mtime_ns == made
    assert more.metadata["people"] == 7, "around the same mean, though the state of its training is deleted"


def test_part_of_the_way_is_between_the_weights() -> None:
    start = kept()
    end = replace(start, network=start.network.copy(), metadata={"steps": 1, "loss_own": 0.1, "taken_at_step": 1})
    with torch.no_grad():
        for index, value in enumerate(end.network.state_dict().values()):
            value.add_(index % 3)
    before = {name: value.clone() for name, value in end.network.state_dict().items()}
    between = interpolate_weights(start, end, 0.25)
    assert between.metadata == {"steps": 1, "share_of_the_way": 0.25}
    for name, value in between.network.state_dict().items():
        expected = start.network.state_dict()[name].double() * 0.75 + before[name].double() * 0.25
        torch.testing.assert_close(value.double(), expected)
        assert torch.equal(end.network.state_dict()[name], before[name])


def test_nobody_is_learnt_from_whom_the_figures_are_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out people are skipped."""
    asked: list[int] = []
    monkeypatch.setattr(people, "person", asked.append)
    people.training_people(40)
    assert len(set(asked)) == 40 and not any(map(is_held_out, asked))


def test_scenes_are_of_other_places_than_the_task_asks_for() -> None:
    drawn = [scene for number in range(50) for scene in people.scenes(number, 6)]
    assert len({scene.background for scene in drawn}) == 5 and people.scenes(7, 6) == people.scenes(7, 6)
    asked = " ".join(CAPTIONS)
    named = [wording for scene in drawn for wording in WORDINGS["background"][scene.background]]
    assert len(drawn) == 300 and not any(wording in asked for wording in named)


def test_a_person_who_was_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    shown: list[Identity] = people.training_people(2)
    people.draw(shown, lambda _: [Scene(), Scene("snow")], tmp_path / "people")
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert sorted(path.relative_to(tmp_path).as_posix() for path in first) == [
        f"people/{person}/{view}.png" for person in ("00000", "00001") for view in (1, 2)
    ]
    assert (tmp_path / "people" / "00001" / "2.txt").read_text() == "a sks face in the snow"
    people.draw(shown, lambda _: [Scene()], tmp_path / "people")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == first
