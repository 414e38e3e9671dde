"""Test that captions name the scene, never the identity, and can be parsed."""

import re

import pytest

from tools.small_world.random_draws import generator_of
from tools.small_world.scene.captions import DEFAULTS, PHRASES, WORDINGS, caption, named, noun_of, parse, sample_caption
from tools.small_world.scene.identity import FACE_TABLE, VASE_TABLE, Identity, Vase, sample_identity, sample_vase
from tools.small_world.scene.scene import SCENE_TABLE, Scene, sample_scene


def test_plain_caption() -> None:
    scene = Scene("snow", "sketch", "smiling")
    assert caption(Identity(), scene) == "a face in the snow, smiling, as a sketch"
    assert (
        caption(Vase(), Scene("beach", framing="close", place="left"))
        == "a close-up of a vase on the beach, on the left"
    )


def test_all_that_is_named_reads_back() -> None:
    generator = generator_of(1)
    wordings = set()
    for turn in range(600):
        thing = (sample_identity if turn % 2 else sample_vase)(generator)
        scene = sample_scene(generator)
        full = named(scene, noun_of(thing))
        text = sample_caption(thing, scene, generator)
        assert parse(text).items() <= full.items()
        assert parse(caption(thing, scene)) == {n: v for n, v in full.items() if v not in DEFAULTS}
        wordings.add(text)
    assert len(wordings) > 500


def test_every_wording_means_one_value() -> None:
    texts = [wording for _, _, wording in PHRASES]
    assert len(set(texts)) == len(texts)
    for name, value, wording in PHRASES:
        front = wording if name == "thing" else f"{wording} a face" if name == "framing" else f"a face {wording}"
        assert parse(front)[name] == value
    values = {a.name: set(a.values) for a in SCENE_TABLE if a.values}
    for name, wordings in WORDINGS.items():
        assert set(wordings) <= values[name]


def test_most_is_named_and_something_left_out() -> None:
    generator = generator_of(2)
    scene = Scene("city", "comic", "sad", "far", "right")
    texts = [parse(sample_caption(Identity(), scene, generator)) for _ in range(300)]
    for name in WORDINGS:
        assert 0.85 < sum(name in found for found in texts) / 300 < 1


def test_no_caption_names_an_identity() -> None:
    words = {word for _, _, wording in PHRASES for word in re.findall(r"\w+", wording)}
    identity = {a.name for t in (FACE_TABLE, VASE_TABLE) for a in t} | {
        value for t in (FACE_TABLE, VASE_TABLE) for a in t for value in a.values
    }
    # "a green field" and "flower vase" describe the scene and the class.
    assert words & identity <= {"green"}


def test_unknown_words_are_told() -> None:
    with pytest.raises(ValueError, match="'wearing a hat', which names no scene"):
        parse("a face in the snow, wearing a hat")
