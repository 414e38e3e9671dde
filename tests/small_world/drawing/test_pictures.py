"""Test images: equal bytes everywhere, visible attributes, and people that differ more than placements."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.small_world.drawing.contact_sheet import different_people
from tools.small_world.drawing.render import render, render_batch
from tools.small_world.random_draws import generator_of
from tools.small_world.scene.attributes import Attribute
from tools.small_world.scene.identity import (
    FACE_TABLE,
    GLAZES,
    VASE_TABLE,
    Identity,
    Vase,
    sample_identity,
    sample_vase,
    table_of,
)
from tools.small_world.scene.people import person, vase
from tools.small_world.scene.scene import KEEPS, SCENE_TABLE, Scene, sample_scene

ROOT = Path(__file__).resolve().parents[3]
DIGEST = "340a5c5e297ffd844caeb0bbf4434cea1960a37fb2224060bd31b97ad1e3431b"
LEAST = 0.25
"""Smallest root mean square difference, on the scale of 255, that a change of an attribute makes."""


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the root mean square difference on the scale of 255."""
    return float(np.sqrt(((one.astype(float) - other) ** 2).mean()))


def values_of(attribute: Attribute) -> st.SearchStrategy:
    return st.sampled_from(attribute.values) if attribute.values else st.floats(0, 1)


def things(kind: type, table: tuple) -> st.SearchStrategy:
    """Return a strategy for any thing of this kind, including rare combinations."""
    return st.fixed_dictionaries({a.name: values_of(a) for a in table}).map(lambda d: kind(**d))


def vases() -> st.SearchStrategy:
    pairs = st.permutations(tuple(GLAZES)).map(lambda p: {"glaze": p[0], "paint": p[1]})
    others = st.fixed_dictionaries({a.name: values_of(a) for a in VASE_TABLE if a.name not in {"glaze", "paint"}})
    return st.tuples(pairs, others).map(lambda two: Vase(**two[0], **two[1]))


def test_pictures_are_pinned_to_the_byte() -> None:
    images = [render(draw(seed), sample_scene(generator_of(seed))) for seed in range(120) for draw in (person, vase)]
    assert hashlib.sha256(np.stack(images).tobytes()).hexdigest() == DIGEST


def test_no_random_state_is_touched() -> None:
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = different_people(3, rows=2, columns=4)
    assert np.array_equal(first, different_people(3, rows=2, columns=4))
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])


def test_a_batch_is_its_pictures() -> None:
    generator = generator_of(4)
    drawn = [sample_identity(generator), sample_vase(generator)]
    scenes = [sample_scene(generator), sample_scene(generator)]
    batch = render_batch(drawn, scenes, 96)
    assert batch.shape == (2, 96, 96, 3) and batch.dtype == np.uint8
    assert all(np.array_equal(batch[i], render(drawn[i], scenes[i], 96)) for i in range(2))


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.one_of(things(Identity, FACE_TABLE), vases()), things(Scene, SCENE_TABLE), st.sampled_from((64, 64, 48, 128)))
def test_every_combination_is_drawn(thing: Identity | Vase, scene: Scene, size: int) -> None:
    image = render(thing, scene, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert image.std() > 10


@pytest.mark.parametrize("style", KEEPS)
@pytest.mark.parametrize("kind", ["face", "vase"])
def test_every_attribute_a_style_keeps_changes_the_picture(kind: str, style: str) -> None:
    draw = person if kind == "face" else vase
    for attribute in table_of(draw(0)):
        if attribute.carrier in KEEPS[style]:
            changes = [c for seed in range(40) if (c := change(draw(seed), attribute, seed, style)) is not None]
            assert len(changes) > 8 and np.median(changes) > 1.5 and min(changes) > LEAST, attribute.name


def change(thing: Identity | Vase, attribute: Attribute, seed: int, style: str) -> float | None:
    """Return the difference between two values of an attribute, or None unless both are visible."""
    at = getattr(thing, attribute.name)
    pair = attribute.values[attribute.values.index(at) - 1] if attribute.values else (at + 0.5) % 1.0
    try:
        other = replace(thing, **{attribute.name: pair})
    except ValueError:  # glaze and paint alike
        return None
    scene = replace(sample_scene(generator_of(seed)), style=style)
    if not (attribute.seen(thing) and attribute.seen(other)):
        return None
    return difference(shown(thing, scene), render(other, scene))


@lru_cache(maxsize=4096)
def shown(thing: Identity | Vase, scene: Scene) -> np.ndarray:
    """Render a thing in a scene; cached, since every attribute uses the same image."""
    return render(thing, scene)


@pytest.mark.parametrize("attribute", SCENE_TABLE, ids=lambda a: a.name)
def test_every_attribute_of_the_scene_changes_the_picture(attribute: Attribute) -> None:
    for value in attribute.values or (0.0, 1.0):
        for seed in range(6):
            scene = replace(sample_scene(generator_of(seed)), style="photo")
            other = replace(scene, **{attribute.name: value})
            same = getattr(scene, attribute.name) == value
            assert same or difference(render(person(seed), scene), render(person(seed), other)) > 1


@pytest.mark.parametrize("style", KEEPS)
def test_a_person_is_nearer_to_oneself_than_to_others(style: str) -> None:
    """In one scene, moving the person by a few pixels changes the image less than another person does."""
    for seed in range(12):
        scene = replace(sample_scene(generator_of(seed)), style=style, shift_x=0.5, shift_y=0.5)
        here = render(person(seed), scene)
        moved = render(person(seed), replace(scene, variant=scene.variant, shift_x=0.6))
        others = [difference(here, render(person(seed + 100 + i), scene)) for i in range(5)]
        assert difference(here, moved) < min(others)


def test_colours_are_those_of_the_identity() -> None:
    """The middle of a bald person's forehead shows the skin on every background, tinted by its light."""
    for background in dict(zip(SCENE_TABLE.names(), SCENE_TABLE, strict=True))["background"].values:
        tones = [render(Identity(skin=s, hair="bald"), Scene(background))[20, 31].mean() for s in (0.0, 0.5, 1.0)]
        assert tones[0] - tones[1] > 40 and tones[1] - tones[2] > 40


def test_larger_pictures_show_the_same() -> None:
    for seed in range(8):
        scene = replace(sample_scene(generator_of(seed)), style="photo")
        small = render(person(seed), scene).astype(float)
        large = render(person(seed), scene, 128).astype(float).reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert difference(small, large) < 9


def test_the_world_needs_no_comfyui() -> None:
    modules = "tools.small_world, tools.small_world.drawing.contact_sheet"
    code = f"import sys, {modules}; print([m for m in sys.modules if m.startswith('comfy')])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
