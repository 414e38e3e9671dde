"""Test the comparison of readings on readings without errors."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tools.small_world.oracle.reading import Reading, agreement, person_of
from tools.small_world.scene.identity import FACE_TABLE, Identity
from tools.small_world.scene.people import person
from tools.small_world.scene.scene import Scene
from tools.small_world.scene.truth import identity_seen

PEOPLE = [person(number) for number in range(40)]


def truth(people: list[Identity]) -> Reading:
    """Return the exact reading of these people, for the attributes of identity."""
    values = torch.from_numpy(np.stack([FACE_TABLE.vector(person) for person in people]))
    return {
        a.name: F.one_hot(values[:, n].long(), len(a.values)).float() if a.values else values[:, n : n + 1]
        for n, a in enumerate(FACE_TABLE)
    }


def test_everybody_agrees_with_themselves_alone() -> None:
    reading = truth(PEOPLE)
    table = agreement(
        {name: part[:, None] for name, part in reading.items()}, {name: part[None] for name, part in reading.items()},
        Scene(),
    )  # fmt: skip
    assert torch.allclose(table.diagonal(), torch.ones(len(PEOPLE)))
    others = table[~torch.eye(len(PEOPLE), dtype=bool)]
    assert others.max() < 0.95 and 0.2 < others.mean() < 0.6


def test_agreement_is_the_mean_of_its_attributes() -> None:
    one, two = person(1), person(2)
    scene = Scene("night", "sketch")
    parts = []
    for attribute, shown in zip(FACE_TABLE, identity_seen(one, scene), strict=True):
        a, b = getattr(one, attribute.name), getattr(two, attribute.name)
        if shown:
            parts.append(float(a == b) if attribute.values else max(0.0, 1 - 2 * abs(a - b)))
    assert agreement(truth([one]), truth([two]), scene, one).item() == pytest.approx(sum(parts) / len(parts), abs=1e-6)


def test_a_person_is_found_again() -> None:
    found = person_of(truth([PEOPLE[7]] * 3))
    for name, value in vars(PEOPLE[7]).items():
        assert getattr(found, name) == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value)
