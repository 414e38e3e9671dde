"""The stream that a pretraining reads: fixed by its number, without anyone who is held out."""

import numpy as np

from .captions import named, noun_of, parse
from .identity import Identity
from .people import person, seeds
from .scene import SCENE_TABLE
from .stream import VASE_EVERY, batch, example


def test_examples_depend_on_their_number_alone() -> None:
    pictures, captions = batch(40, 6)
    again, words = batch(42, 2)
    assert np.array_equal(pictures[2:4], again) and captions[2:4] == words
    assert pictures.shape == (6, 64, 64, 3)


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


def test_few_people_come_again_in_other_scenes() -> None:
    shown = [example(n, people=8) for n in range(200)]
    faces = [e for e in shown if isinstance(e.thing, Identity)]
    assert len({e.thing for e in faces}) <= 8
    assert len({(e.thing, e.scene) for e in faces}) == len(faces)
