"""What processes tell each other; alone, and two of them over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hyperbooth.trainers.engine.distributed import ALONE, STORE_APART, Ranks, joined

TALK = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("ranks", sys.argv[1])
ranks = sys.modules["ranks"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)
with ranks.joined() as we:
    a, b = torch.full((2, 3), float(we.rank + 1)), torch.tensor([10.0 * we.rank])
    we.add([a, b])
    c = torch.tensor([we.rank, 7])
    we.give([c])
    once = we.once(lambda: {"who": we.rank, "text": "é", "number": 0.1 + 0.2})
    heard = we.heard("x" * (we.rank + 1))
    assert (a.tolist(), b.tolist(), c.tolist()) == ([[3.0] * 3] * 2, [10.0], [0, 7])
    assert list(we.sum(0.1 + we.rank, 5)) == [0.1 + (0.1 + 1), 10]
    assert once == {"who": 0, "text": "é", "number": 0.1 + 0.2} and heard == ["x", "xx"]
    print(f"process {we.rank} of {we.of} is done")
"""


def talk(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    script = folder / "talk.py"
    script.write_text(TALK, encoding="utf-8")
    ranks = Path(sys.modules[Ranks.__module__].__file__)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts=1",
         str(script), str(ranks)],
        capture_output=True, text=True, env={**os.environ, **environment}, cwd=folder, timeout=200, check=False,
    )  # fmt: skip


def test_two_processes_hear_each_other(tmp_path: Path) -> None:
    said = talk(tmp_path, **{STORE_APART: "1"})
    assert said.returncode == 0, said.stderr
    assert all(f"process {rank} of 2 is done" in said.stdout for rank in (0, 1)), said.stdout


def test_restarts_that_could_not_meet_again_are_refused(tmp_path: Path) -> None:
    said = talk(tmp_path, **{STORE_APART: "0"})
    assert said.returncode != 0 and f"--max-restarts needs the environment variable {STORE_APART}=1" in said.stderr


def test_alone_everything_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined() as ranks:
        assert ranks is ALONE and ranks.leads
    tensor = torch.ones(2)
    ALONE.add([tensor])
    ALONE.give([tensor])
    assert tensor.tolist() == [1, 1] and ALONE.sum(1.5, 2) == (1.5, 2)
    assert ALONE.once(lambda: "a") == "a" and ALONE.heard("a") == ["a"] and ALONE.share(5) == slice(0, 5)


@pytest.mark.parametrize(("count", "of"), [(5, 2), (16, 3), (4, 4), (2, 3)])
def test_shares_are_the_whole_in_order(count: int, of: int) -> None:
    rows = list(range(count))
    shares = [rows[Ranks(rank, of).share(count)] for rank in range(of)]
    assert [row for share in shares for row in share] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("rank", "of"), [(-1, 1), (2, 2), (0, 0)])
def test_a_rank_is_one_of_all(rank: int, of: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank} of {of}"):
        Ranks(rank, of)
