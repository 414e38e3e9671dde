"""A server killed in the middle of a training: nothing broken, and the same adapter in the end.

`dev.py bench endurance` kills it thirty times.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tools.comfy_harness.api_graphs import saved, small_job
from tools.comfy_harness.kill_test import survive, with_states
from tools.comfy_harness.server import Server, prepare_job


def test_killed_at_random_moments_it_ends_with_the_same_adapter(
    server: Server, checkpoint: Path, tmp_path: Path
) -> None:
    prepare = with_states(small_job(checkpoint.name, steps=24), every=3)
    killed = survive(prepare_job(tmp_path / "killed", checkpoint), prepare, kills=1, seed=0)
    graph = prepare(server)
    whole = server.run(graph)
    assert whole.status == "success", whole.message
    assert killed.broken == [] and killed.kills == 1
    # The bar shows a step up to a tenth of a second late, and a kill comes before the next state.
    assert killed.lost <= 3 + 3
    first, second = load_file(killed.result), load_file(saved(server, graph, whole))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
