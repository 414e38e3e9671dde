"""A server under many clients: what it holds after each of many queued prompts."""

import json
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import websocket

from .api_graphs import Graph
from .server import Server

PATIENCE = 1800.0
"""Seconds that a client waits for its next message."""
STATES = "hyperbooth_states"


@dataclass(frozen=True)
class Held:
    """What the server holds at one moment.

    Args:
        bytes: resident memory.
        threads: threads of its process.
        handles: open file descriptors, those of the clients' connections among them.
        files: files below its base directory but what the prompts save or show: states and leftovers.
    """

    bytes: int
    threads: int
    handles: int
    files: int


@dataclass
class Soak:
    """Prompts queued by many clients at once, each over a websocket of its own.

    Args:
        server: the running server.
        graph: of prompt number n, all different.
    """

    server: Server
    graph: Callable[[int], Graph]
    held: list[Held] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, prompts: int, clients: int) -> Sequence[Held]:
        """Queue ``prompts`` prompts at once, and return what the server held when each of them ended.

        All clients stay connected to the end.
        """
        connected, ended = threading.Barrier(clients), threading.Barrier(clients)
        shares = [range(client, prompts, clients) for client in range(clients)]
        threads = [threading.Thread(target=self._client, args=(share, connected, ended)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.held

    def _client(self, numbers: Sequence[int], connected: threading.Barrier, ended: threading.Barrier) -> None:
        name = uuid.uuid4().hex
        url = f"ws://127.0.0.1:{self.server.port}/ws?clientId={name}"
        connection = websocket.create_connection(url, timeout=PATIENCE)
        try:
            connected.wait(PATIENCE)
            bodies = [{"prompt": self.graph(number), "client_id": name} for number in numbers]
            waiting = {self.server.post("/prompt", body)["prompt_id"] for body in bodies}
            while waiting:
                waiting -= self._ended(connection)
            ended.wait(PATIENCE * 10)
        finally:
            connection.close()

    def _ended(self, connection: websocket.WebSocket) -> set[str]:
        """Wait for a message, and return the prompt that it ends, if any."""
        message = connection.recv()
        event = json.loads(message) if isinstance(message, str) else {}
        if event.get("type") not in ("execution_success", "execution_error", "execution_interrupted"):
            return set()
        with self._lock:
            if event["type"] != "execution_success":
                self.failures.append(json.dumps(event["data"])[:500])
            self.held.append(self._measure())
        return {event["data"]["prompt_id"]}

    def _measure(self) -> Held:
        process = psutil.Process(self.server.process.pid)
        files = [path for path in self.server.base.rglob("*") if path.is_file() and not self._is_result(path)]
        return Held(process.memory_info().rss, process.num_threads(), process.num_fds(), len(files))

    def _is_result(self, path: Path) -> bool:
        below = path.relative_to(self.server.base).parts
        saved = below[0] == "temp" or (below[0] == "output" and below[1] != STATES)
        return saved and path.suffix in (".safetensors", ".png")
