"""Test the oracles' outputs and their loss; test_trained.py tests their quality."""

import numpy as np
import pytest
import torch

from tools.small_world.drawing.render import render
from tools.small_world.oracle.network import Oracle, parts, reading_loss
from tools.small_world.scene.identity import FACE_TABLE
from tools.small_world.scene.people import person
from tools.small_world.scene.scene import SCENE_TABLE, sample_scene
from tools.small_world.scene.truth import identity_seen, identity_vector


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images of people in scenes, their attributes, and which attributes are visible."""
    generator = torch.Generator().manual_seed(0)
    pairs = [(person(number), sample_scene(generator)) for number in range(count)]
    images = torch.from_numpy(np.stack([render(*pair) for pair in pairs])).permute(0, 3, 1, 2).float() / 255
    truth = torch.from_numpy(np.stack([identity_vector(thing) for thing, _ in pairs]))
    return images, truth, torch.from_numpy(np.stack([identity_seen(*pair) for pair in pairs]))


@pytest.mark.parametrize("table", [FACE_TABLE, SCENE_TABLE], ids=["identity", "scene"])
def test_every_attribute_has_its_outputs(table: tuple) -> None:
    oracle = Oracle(table)
    found = parts(table, oracle(torch.rand(2, 3, 64, 64)))
    assert list(found) == [attribute.name for attribute in table]
    assert all(found[attribute.name].shape == (2, len(attribute.values) or 1) for attribute in table)


def test_what_a_picture_does_not_show_is_not_asked() -> None:
    torch.manual_seed(0)
    images, truth, seen = examples(6)
    assert not seen.all() and seen.any()
    outputs = Oracle(FACE_TABLE).eval()(images)
    other = torch.where(seen, truth, 0.0)
    assert not torch.equal(other, truth)
    assert reading_loss(FACE_TABLE, outputs, truth, seen) == reading_loss(FACE_TABLE, outputs, other, seen)


def test_it_learns_faces_by_heart() -> None:
    torch.manual_seed(0)
    images, truth, seen = examples(12)
    oracle = Oracle(FACE_TABLE)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = reading_loss(FACE_TABLE, oracle(images), truth, seen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
