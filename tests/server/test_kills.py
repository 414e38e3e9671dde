"""A server killed in the middle of a training: nothing broken, and the same adapter in the end."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from devkit.endurance import survive, with_states
from devkit.graphs import small_job
from devkit.server import prepare_job


def test_killed_at_random_moments_it_ends_with_the_same_adapter(checkpoint: Path, tmp_path: Path) -> None:
    prepare = with_states(small_job(checkpoint.name, steps=60), every=3)
    killed = survive(prepare_job(tmp_path / "killed", checkpoint), prepare, kills=2, seed=0)
    whole = survive(prepare_job(tmp_path / "whole", checkpoint), prepare, kills=0, seed=0)
    assert killed.broken == [] and killed.kills == 2
    # The bar shows a step up to a tenth of a second late, and a kill comes before the next state.
    assert killed.lost <= 3 + 3
    first, second = load_file(killed.result), load_file(whole.result)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
