"""Test the pretraining examples: determined by their index, without held-out people."""

import numpy as np

from tools.small_world.pretraining.stream import VASE_EVERY, example
from tools.small_world.scene.captions import named, noun_of, parse
from tools.small_world.scene.identity import Identity
from tools.small_world.scene.people import person, seeds
from tools.small_world.scene.scene import SCENE_TABLE


def test_examples_depend_on_their_number_alone() -> None:
    first, again = ([example(n) for n in range(start, 46)] for start in (40, 42))
    assert first[2:] == again
    assert np.array_equal(first[3].image(), again[1].image()) and first[3].image().shape == (64, 64, 3)


def test_nobody_held_out_is_seen() -> None:
    held = seeds(True)
    hidden = {person(next(held)) for _ in range(60)}
    shown = [example(n).thing for n in range(900)]
    assert not hidden & set(shown)
    faces = [thing for thing in shown if isinstance(thing, Identity)]
    assert len(faces) == 900 - 900 // VASE_EVERY


def test_captions_fit_their_pictures() -> None:
    for n in range(200):
        shown = example(n)
        assert parse(shown.caption).items() <= named(shown.scene, noun_of(shown.thing)).items()


def test_scenes_tell_nothing_of_the_person() -> None:
    shown = [e for n in range(2500) if isinstance((e := example(n)).thing, Identity)]
    skin = np.array([e.thing.skin for e in shown])
    for attribute in SCENE_TABLE:
        values = np.array([attribute.encode(getattr(e.scene, attribute.name)) for e in shown])
        assert abs(np.corrcoef(skin, values)[0, 1]) < 0.08, attribute.name
