"""Process groups: a single process, and two processes over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hyperbooth.trainers.engine.distributed import SEPARATE_STORE, SINGLE, ProcessGroup, process_group

SCRIPT = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("distributed", sys.argv[1])
distributed = sys.modules["distributed"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(distributed)
with distributed.process_group() as group:
    a, b = torch.full((2, 3), float(group.rank + 1)), torch.tensor([10.0 * group.rank])
    group.all_reduce_([a, b])
    c = torch.tensor([group.rank, 7])
    group.broadcast_([c])
    broadcast = group.broadcast_object(lambda: {"who": group.rank, "text": "é", "number": 0.1 + 0.2})
    gathered = group.all_gather_object("x" * (group.rank + 1))
    assert (a.tolist(), b.tolist(), c.tolist()) == ([[3.0] * 3] * 2, [10.0], [0, 7])
    assert list(group.all_reduce_scalars(0.1 + group.rank, 5)) == [0.1 + (0.1 + 1), 10]
    assert broadcast == {"who": 0, "text": "é", "number": 0.1 + 0.2} and gathered == ["x", "xx"]
    print(f"process {group.rank} of {group.world_size} is done")
"""


def run_two(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    ranks = Path(sys.modules[ProcessGroup.__module__].__file__)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts=1",
         str(script), str(ranks)],
        capture_output=True, text=True, env={**os.environ, **environment}, cwd=folder, timeout=200, check=False,
    )  # fmt: skip


def test_two_processes_exchange_tensors_and_objects(tmp_path: Path) -> None:
    result = run_two(tmp_path, **{SEPARATE_STORE: "1"})
    assert result.returncode == 0, result.stderr
    assert all(f"process {rank} of 2 is done" in result.stdout for rank in (0, 1)), result.stdout


def test_restarts_without_a_separate_store_are_refused(tmp_path: Path) -> None:
    result = run_two(tmp_path, **{SEPARATE_STORE: "0"})
    assert result.returncode != 0 and f"{SEPARATE_STORE}=1" in result.stderr


def test_a_single_process_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with process_group() as ranks:
        assert ranks is SINGLE and ranks.is_main
    tensor = torch.ones(2)
    SINGLE.all_reduce_([tensor])
    SINGLE.broadcast_([tensor])
    assert tensor.tolist() == [1, 1] and SINGLE.all_reduce_scalars(1.5, 2) == (1.5, 2)
    assert (
        SINGLE.broadcast_object(lambda: "a") == "a"
        and SINGLE.all_gather_object("a") == ["a"]
        and SINGLE.shard(5) == slice(0, 5)
    )


@pytest.mark.parametrize(("count", "of"), [(5, 2), (16, 3), (4, 4), (2, 3)])
def test_shards_cover_all_rows_in_order(count: int, of: int) -> None:
    rows = list(range(count))
    shards = [rows[ProcessGroup(rank, of).shard(count)] for rank in range(of)]
    assert [row for shard in shards for row in shard] == rows
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(("rank", "of"), [(-1, 1), (2, 2), (0, 0)])
def test_a_rank_beyond_the_world_size_is_refused(rank: int, of: int) -> None:
    with pytest.raises(ValueError, match=rf"^rank .*{rank}\b.*\b{of}\b"):
        ProcessGroup(rank, of)
