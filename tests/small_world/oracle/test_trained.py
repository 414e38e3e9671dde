"""Test that the repository's oracle reads held-out people."""

from collections.abc import Iterable
from pathlib import Path

import torch

from tools.small_world.oracle.quality import held_out, quality
from tools.small_world.oracle.questions import QUESTIONS
from tools.small_world.oracle.trained import keep, kept
from tools.small_world.scene.identity import FACE_TABLE
from tools.small_world.scene.scene import SCENE_TABLE
from tools.small_world.scene.task import REFERENCES

IDENTITY, SCENE = FACE_TABLE.names(), SCENE_TABLE.names()
"""Names of the questions about people, and about scenes."""


def mean(found: dict[str, float], names: Iterable[str], categorical: bool) -> float:
    values = [found[a.name] for a in QUESTIONS if a.name in names and bool(a.values) == categorical]
    return sum(values) / len(values)


def test_it_reads_people_from_their_four_photographs() -> None:
    found = quality(kept(), held_out(800), REFERENCES)
    assert mean(found, IDENTITY, categorical=True) > 0.97, found
    assert mean(found, IDENTITY, categorical=False) > 0.95, found


def test_it_reads_them_in_any_scene_and_style() -> None:
    found = quality(kept(), held_out(800))
    assert mean(found, IDENTITY, categorical=True) > 0.97, found
    assert mean(found, SCENE, categorical=True) > 0.97, found
    assert mean(found, SCENE, categorical=False) > 0.95, found


def test_it_is_kept_in_half_precision(tmp_path: Path) -> None:
    oracle = kept()
    keep(oracle, tmp_path / "oracle.safetensors")
    again = kept(tmp_path / "oracle.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(oracle.parameters(), again.parameters(), strict=True))
    assert (tmp_path / "oracle.safetensors").stat().st_size < 2.5e6
