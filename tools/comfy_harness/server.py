"""Run a real headless ComfyUI with the pack, and drive it over its API and websocket as users' programs do."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import websocket
from PIL import Image

from ..comfy_harness import base_directory
from .import_pack import ROOT, comfyui_path
from .symlinks import link

START_SECONDS = 180


@dataclass
class Outcome:
    """Hold the outcome of one prompt.

    Args:
        status: ``success``, ``error`` or ``interrupted``.
        outputs: node id -> the node's displayed output (images, text).
        executed: ids of the nodes that ran, in order; cached ones are not among them.
        progress: node id -> values of its progress bar, in order of arrival.
        images: JPEG or PNG bytes of the images shown in running nodes.
        error: the server's message for a failed node, or its refusal of the prompt.
        refused: node id -> why the server did not run it, when it ran other outputs of the prompt.
    """

    status: str
    outputs: dict[str, Any] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    progress: dict[str, list[int]] = field(default_factory=dict)
    images: list[bytes] = field(default_factory=list)
    error: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> str:
        return self.error.get("exception_message", json.dumps(self.error))


class Server:
    """Control a running ComfyUI.

    Args:
        port: port on 127.0.0.1.
        base: base directory, with ``models``, ``input``, ``output``.
        process: the server's process.
    """

    def __init__(self, port: int, base: Path, process: subprocess.Popen):
        self.port, self.base, self.process, self.client = port, base, process, uuid.uuid4().hex

    def kill(self) -> None:
        """Send SIGKILL, as the kernel does when memory is short: the server cannot clean up."""
        self.process.kill()
        self.process.wait()

    @property
    def output(self) -> Path:
        return self.base / "output"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def run(self, graph: dict[str, Any], on_progress: Any = None, seconds: float = 1200) -> Outcome:
        """Queue ``graph`` (API format) and wait on the websocket until it has ended.

        Args:
            on_progress: called with (node id, value) at each progress message; may interrupt.
        """
        connection = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=seconds
        )
        try:
            try:
                queued = self.post("/prompt", {"prompt": graph, "client_id": self.client})
            except urllib.error.HTTPError as refusal:
                return Outcome("error", error=json.loads(refusal.read()))
            outcome = _follow(connection, queued["prompt_id"], on_progress)
            outcome.refused.update(queued["node_errors"])
            return outcome
        finally:
            connection.close()

    def interrupt(self) -> None:
        """Interrupt the running prompt, as ComfyUI's cancel button does."""
        self.post("/interrupt", {})


def _follow(connection: websocket.WebSocket, prompt: str, on_progress: Any) -> Outcome:
    outcome = Outcome("running")
    while outcome.status == "running":
        message = connection.recv()
        if isinstance(message, bytes):
            outcome.images.append(_image_bytes(message))
            continue
        event = json.loads(message)
        data = event.get("data", {})
        if data.get("prompt_id") == prompt:  # a message on the previous prompt has no id
            _note(outcome, event["type"], data, on_progress)
    return outcome


def _note(outcome: Outcome, kind: str, data: dict[str, Any], on_progress: Any) -> None:
    if kind == "executing" and data.get("node"):
        outcome.executed.append(data["node"])
    elif kind == "executed":
        outcome.outputs[data["node"]] = data["output"]
    elif kind == "progress":
        outcome.progress.setdefault(data["node"], []).append(data["value"])
        if on_progress is not None:
            on_progress(data["node"], data["value"])
    elif kind == "execution_error":
        outcome.status, outcome.error = "error", data
    elif kind == "execution_interrupted":
        outcome.status = "interrupted"
    elif kind == "execution_success":
        outcome.status = "success"


def _image_bytes(message: bytes) -> bytes:
    """Return the image in a binary message without the header before it."""
    starts = [at for mark in (b"\xff\xd8\xff", b"\x89PNG") if (at := message.find(mark)) >= 0]
    return message[min(starts) :] if starts else b""


def prepare_base(base: Path, pack_folder: str = "ComfyUI-HyperBooth") -> Path:
    """Make a base directory for a server, with the pack linked into ``custom_nodes``."""
    for folder in ("models/checkpoints", "models/loras", "input", "output", "custom_nodes", "user", "temp"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link(ROOT, base / "custom_nodes" / pack_folder)
    return base


def add_small_world(base: Path) -> None:
    """Link the small world into the custom nodes of ``base``, so that the server can load its checkpoint."""
    link(ROOT / "tools" / "small_world", base / "custom_nodes" / "small_world")


def prepare_job(base: Path, checkpoint: Path, pack_folder: str = "ComfyUI-HyperBooth") -> Path:
    """Call :func:`prepare_base`; add a checkpoint and four images of different sizes for the shipped workflows."""
    prepare_base(base, pack_folder)
    link(checkpoint, base / "models" / "checkpoints" / checkpoint.name)
    for index in range(4):
        noise = np.random.default_rng(index).integers(0, 256, (72 + 8 * index, 64, 3), dtype=np.uint8)
        for folder in (base / "input", base / "input" / "my dog"):
            folder.mkdir(exist_ok=True)
            Image.fromarray(noise).save(folder / f"subject_{index + 1}.png")
    return base


@contextmanager
def running_server(base: Path, arguments: Sequence[str] = ()) -> Iterator[Server]:
    """Start ComfyUI on ``base``, wait until it responds, and stop it at the end. Its log is ``base/server.log``."""
    port = _free_port()
    device = [] if _has_accelerator() else ["--cpu"]
    command = [
        sys.executable, str(comfyui_path() / "main.py"), "--port", str(port), *base_directory.arguments(base),
        "--disable-api-nodes", "--disable-auto-launch", *device, *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with open(base / "server.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=base)
        try:
            server = Server(port, base, process)
            _wait(server, process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, process: subprocess.Popen) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            server.get("/system_stats")
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    tail = (server.base / "server.log").read_text(errors="replace")[-3000:]
    raise RuntimeError(f"ComfyUI did not start within {START_SECONDS} s; the end of its log:\n{tail}")


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
