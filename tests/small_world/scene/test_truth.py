"""Test tables, vectors and people, the oracle's training targets."""

from dataclasses import asdict, fields
from itertools import islice

import numpy as np
import pytest
import torch

from tools.small_world.random_draws import generator_of
from tools.small_world.scene.identity import FACE_TABLE, VASE_TABLE, Identity, Vase, sample_identity, sample_vase
from tools.small_world.scene.people import HELD_OUT, is_held_out, person, seeds
from tools.small_world.scene.scene import KEEPS, SCENE_TABLE, Scene, sample_scene
from tools.small_world.scene.truth import identity_seen, identity_vector, scene_seen, scene_vector


@pytest.mark.parametrize(("kind", "table"), [(Identity, FACE_TABLE), (Vase, VASE_TABLE), (Scene, SCENE_TABLE)])
def test_tables_describe_all_fields_in_order(kind: type, table: tuple) -> None:
    names = tuple(field.name for field in fields(kind) if field.name != "variant")
    assert table.names() == names
    for attribute in table:
        attribute.check(getattr(kind(), attribute.name))


def test_there_are_millions_of_people() -> None:
    kinds = np.prod([len(a.values) for a in FACE_TABLE if a.kind == "categorical"], dtype=float)
    assert kinds > 1e8
    assert len({person(seed) for seed in range(1000)}) == 1000


def test_vectors_hold_values_and_indices() -> None:
    someone = Identity(skin=0.25, hair="bob", hat="cap")
    vector = dict(zip(FACE_TABLE.names(), identity_vector(someone), strict=True))
    assert (vector["skin"], vector["hair"], vector["hat"]) == (0.25, 3, 3)
    assert scene_vector(Scene("night", "sepia")).tolist() == [4, 4, 0, 0, 0, 0.5, 0.5]


def test_what_a_picture_does_not_show_is_masked() -> None:
    names = FACE_TABLE.names()
    plain = dict(zip(names, identity_seen(Identity(), Scene()), strict=True))
    assert plain["hair"] and not plain["hat_color"] and not plain["glasses_color"]
    drawn = dict(zip(names, identity_seen(Identity(hat="cap"), Scene(style="sketch")), strict=True))
    assert drawn["hat"] and not (drawn["hat_color"] or drawn["skin"] or drawn["hair"])
    assert not scene_seen(Vase(), Scene())[SCENE_TABLE.names().index("expression")]
    assert set(KEEPS) == set(dict(zip(SCENE_TABLE.names(), SCENE_TABLE, strict=True))["style"].values)


def test_samples_follow_their_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draws = [[f(generator_of(7)) for f in (sample_identity, sample_vase, sample_scene)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_value_is_sampled() -> None:
    people = [asdict(person(seed)) for seed in range(800)]
    for attribute in FACE_TABLE:
        found = [p[attribute.name] for p in people]
        if attribute.values:
            assert set(found) == set(attribute.values)
        else:
            assert min(found) < 0.02 and max(found) > 0.98 and 0.46 < np.mean(found) < 0.54


def test_people_held_out_are_few_and_fixed() -> None:
    held = sum(map(is_held_out, range(4096)))
    assert 0.7 < held * HELD_OUT / 4096 < 1.3
    assert list(islice(seeds(True), 5)) == [s for s in range(200) if is_held_out(s)][:5]
    assert not set(islice(seeds(False), 50)) & set(islice(seeds(True), 50))
    assert list(islice(seeds(True), 3)) == [17, 24, 39]


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match="hat is 'fez', expected one of"):
        Identity(hat="fez")
    with pytest.raises(ValueError, match="skin is 2, expected a number from 0 to 1"):
        Identity(skin=2)
    with pytest.raises(ValueError, match="glaze and paint are both 'red'"):
        Vase(glaze="red", paint="red")
    with pytest.raises(ValueError, match="variant is -1"):
        Scene(variant=-1)
