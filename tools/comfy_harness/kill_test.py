"""A queued training that is killed again and again, on a real server: what is left of it?"""

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
"""Gives the graph to queue, once the server can say what its nodes take."""


@dataclass
class Endurance:
    """What kills left.

    Args:
        kills: how often the server was killed while it trained.
        lost: most steps that a restart had to do again, over all kills.
        broken: files that could not be read after a kill.
        result: the adapter's file of the run that came to its end.
    """

    kills: int = 0
    lost: int = 0
    broken: list[str] = field(default_factory=list)
    result: Path | None = None


def survive(base: Path, prepare: Prepare, kills: int, seed: int, log: Callable[[str], None] = print) -> Endurance:
    """Queue a training, kill the server at a random moment of it, start it again, ``kills`` times; then let it end."""
    outcome, chance, reached = Endurance(), random.Random(seed), 0
    while outcome.result is None:
        with running_server(base) as server:
            graph = prepare(server)
            patience = chance.uniform(0.0, 3.0) if outcome.kills < kills else None
            watched = _Watched(server, graph)
            last = watched.run(patience)
            if watched.first is not None:
                outcome.lost = max(outcome.lost, reached - (watched.first - 1))
            reached = max(reached, watched.seen)
            if last is not None:
                assert last.status == "success", last.message
                outcome.result = saved(server, graph, last)
            else:
                outcome.kills += 1
        outcome.broken += _unreadable(base)
        log(f"kills {outcome.kills}, step {reached}, broken {len(outcome.broken)}")
    return outcome


class _Watched:
    """One life of the server: the steps its Train node showed."""

    def __init__(self, server: Server, graph: Graph):
        self.server, self.graph, self.train = server, graph, find(graph, "HyperBoothTrain")
        self.first: int | None = None
        self.seen = 0
        self._started = threading.Event()

    def run(self, patience: float | None) -> Outcome | None:
        """The outcome, or None if the server was killed ``patience`` seconds after its first training step."""
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
    """Files under the output folder that are not whole."""
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
    """The graph with a state on disk every so many steps."""
    return lambda server: with_options(server, graph, checkpoint_every=every, preview_every=0)
