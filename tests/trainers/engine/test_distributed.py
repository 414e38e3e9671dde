"""What processes tell each other; alone, and two of them over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hyperbooth.trainers.engine.distributed import SEPARATE_STORE, SINGLE, ProcessGroup, process_group

TALK = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("ranks", sys.argv[1])
ranks = sys.modules["ranks"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)
with ranks.process_group() as we:
    a, b = torch.full((2, 3), float(we.rank + 1)), torch.tensor([10.0 * we.rank])
    we.all_reduce_([a, b])
    c = torch.tensor([we.rank, 7])
    we.broadcast_([c])
    once = we.broadcast_object(lambda: {"who": we.rank, "text": "é", "number": 0.1 + 0.2})
    heard = we.all_gather_object("x" * (we.rank + 1))
    assert (a.tolist(), b.tolist(), c.tolist()) == ([[3.0] * 3] * 2, [10.0], [0, 7])
    assert list(we.all_reduce_scalars(0.1 + we.rank, 5)) == [0.1 + (0.1 + 1), 10]
    assert once == {"who": 0, "text": "é", "number": 0.1 + 0.2} and heard == ["x", "xx"]
    print(f"process {we.rank} of {we.world_size} is done")
"""


def talk(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    script = folder / "talk.py"
    script.write_text(TALK, encoding="utf-8")
    ranks = Path(sys.modules[ProcessGroup.__module__].__file__)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts=1",
         str(script), str(ranks)],
        capture_output=True, text=True, env={**os.environ, **environment}, cwd=folder, timeout=200, check=False,
    )  # fmt: skip


def test_two_processes_hear_each_other(tmp_path: Path) -> None:
    said = talk(tmp_path, **{SEPARATE_STORE: "1"})
    assert said.returncode == 0, said.stderr
    assert all(f"process {rank} of 2 is done" in said.stdout for rank in (0, 1)), said.stdout


def test_restarts_that_could_not_meet_again_are_refused(tmp_path: Path) -> None:
    said = talk(tmp_path, **{SEPARATE_STORE: "0"})
    assert said.returncode != 0 and f"--max-restarts needs the environment variable {SEPARATE_STORE}=1" in said.stderr


def test_alone_everything_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_shares_are_the_whole_in_order(count: int, of: int) -> None:
    rows = list(range(count))
    shares = [rows[ProcessGroup(rank, of).shard(count)] for rank in range(of)]
    assert [row for share in shares for row in share] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("rank", "of"), [(-1, 1), (2, 2), (0, 0)])
def test_a_rank_is_one_of_all(rank: int, of: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank} of {of}"):
        ProcessGroup(rank, of)
