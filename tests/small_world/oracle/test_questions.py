"""Test that every question has an answer if the image shows one."""

import numpy as np

from tools.small_world.oracle.questions import QUESTIONS, answers
from tools.small_world.scene.identity import FACE_TABLE
from tools.small_world.scene.people import person, vase
from tools.small_world.scene.scene import SCENE_TABLE, Scene

FACE = slice(1, 1 + len(FACE_TABLE))


def test_names_are_asked_once() -> None:
    assert len(set(QUESTIONS.names())) == len(QUESTIONS) == 1 + len(FACE_TABLE) + len(SCENE_TABLE)


def test_of_a_face_all_is_asked_that_its_style_shows() -> None:
    true, shown = answers(person(3), Scene("snow"))
    assert true[0] == 0 and shown[0]
    assert np.array_equal(true[FACE], FACE_TABLE.vector(person(3)))
    assert shown[FACE].sum() > answers(person(3), Scene("snow", "sketch"))[1][FACE].sum()


def test_of_a_vase_only_the_scene_is_asked() -> None:
    true, shown = answers(vase(3), Scene("snow", expression="sad"))
    assert true[0] == 1 and not shown[FACE].any()
    assert not shown[QUESTIONS.names().index("expression")]
    assert QUESTIONS[-7].values[int(true[-7])] == "snow" and shown[-7]
