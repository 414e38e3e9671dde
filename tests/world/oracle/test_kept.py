"""The oracle in the repository reads people nobody trained on."""

from pathlib import Path

import pytest
import torch

from .kept import WEIGHTS, keep, kept
from .quality import quality
from .questions import QUESTIONS

pytestmark = pytest.mark.skipif(not all(path.exists() for path in (WEIGHTS,)), reason="not trained yet")


def test_it_reads_held_out_people() -> None:
    found = quality(kept(), 800)
    right = {a.name: found[a.name] for a in QUESTIONS if a.values}
    explained = {a.name: found[a.name] for a in QUESTIONS if not a.values}
    assert sum(right.values()) / len(right) > 0.97, right
    assert sum(explained.values()) / len(explained) > 0.95, explained


def test_it_is_kept_in_half_precision(tmp_path: Path) -> None:
    oracle = kept()
    keep(oracle, tmp_path / "oracle.safetensors")
    again = kept(tmp_path / "oracle.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(oracle.parameters(), again.parameters(), strict=True))
    assert (tmp_path / "oracle.safetensors").stat().st_size < 2.5e6
