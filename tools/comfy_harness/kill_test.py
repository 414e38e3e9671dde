"""Kill a queued training repeatedly on a real server, and check the files that it leaves."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import websocket
from safetensors import SafetensorError, safe_open

from .api_graphs import Graph, find, saved, with_options
from .server import Outcome, Server, running_server

Prepare = Callable[[Server], Graph]
"""Returns the graph to queue, given a server that can describe its nodes' inputs."""


@dataclass
class Endurance:
    """Hold the outcome of a kill test.

    Args:
        kills: number of times that the server was killed while it trained.
        lost: largest number of steps that a restart had to repeat.
        broken: files that could not be read after a kill.
        result: adapter file of the run that completed.
    """

    kills: int = 0
    lost: int = 0
    broken: list[str] = field(default_factory=list)
    result: Path | None = None


def survive(base: Path, prepare: Prepare, kills: int, seed: int, log: Callable[[str], None] = print) -> Endurance:
    """Queue a training, kill and restart the server at random moments ``kills`` times, then let the training finish."""
    outcome, chance, reached = Endurance(), random.Random(seed), 0
    while outcome.result is None:
        with running_server(base) as server:
            graph = prepare(server)
            patience = chance.uniform(0.0, 3.0) if outcome.kills < kills else None
            server_run = _ServerRun(server, graph)
            last = server_run.run(patience)
            if server_run.first is not None:
                outcome.lost = max(outcome.lost, reached - (server_run.first - 1))
            reached = max(reached, server_run.seen)
            if last is not None:
                assert last.status == "success", last.message
                outcome.result = saved(server, graph, last)
            else:
                outcome.kills += 1
        outcome.broken += _unreadable(base)
        log(f"kills {outcome.kills}, step {reached}, broken {len(outcome.broken)}")
    return outcome


class _ServerRun:
    """Follow one run of the server until its end or kill, and the steps that its Train node reports."""

    def __init__(self, server: Server, graph: Graph):
        self.server, self.graph, self.train = server, graph, find(graph, "HyperBoothTrain")
        self.first: int | None = None
        self.seen = 0
        self._started = threading.Event()

    def run(self, patience: float | None) -> Outcome | None:
        """Return the outcome, or None if the server was killed ``patience`` seconds after its first training step."""
        if patience is not None:
            threading.Thread(target=self._kill_after, args=(patience,), daemon=True).start()
        try:
            return self.server.run(self.graph, self._note)
        except (OSError, websocket.WebSocketException):
            self.server.process.wait(timeout=10)
            return None

    def _note(self, node: str, value: int) -> None:
        if node == self.train:
            self.first = value if self.first is None else self.first
            self.seen = max(self.seen, value)
            self._started.set()

    def _kill_after(self, patience: float) -> None:
        self._started.wait()
        time.sleep(patience)
        self.server.kill()


def _unreadable(base: Path) -> list[str]:
    """Return the files under the output folder that cannot be read completely."""
    broken = []
    for path in (base / "output").rglob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            broken.append(f"{path.name}: {error}")
    return broken


def with_states(graph: Graph, every: int) -> Prepare:
    """Return the graph with a checkpoint on disk every ``every`` steps."""
    return lambda server: with_options(server, graph, checkpoint_every=every, preview_every=0)
