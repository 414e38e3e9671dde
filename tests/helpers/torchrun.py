"""Run commands as users do, in processes of their own, by torchrun."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.comfy_harness.import_pack import ROOT, comfyui_path

TIMEOUT = 200.0
"""Seconds that a command may take on a busy machine."""


@dataclass(frozen=True)
class CommandRunner:
    """Runs commands on one ComfyUI.

    Args:
        checkpoint: the model.
        inputs, outputs: ComfyUI's folders.
    """

    checkpoint: Path
    inputs: Path
    outputs: Path

    def run(
        self, command: str, arguments: Sequence[str], processes: int, kill: Callable[[], bool] | None = None,
        status: int = 0, comfyui_arguments: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Run a command and return its output.

        Args:
            command: name of its file in ``commands``, without suffix.
            arguments: of the command.
            processes: number of processes for torchrun, which restarts them once; 1 runs without torchrun.
            kill: polled until it returns true; then the last process is killed.
            status: the expected exit status.
            comfyui_arguments: more arguments for ComfyUI.
        """
        engine = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", f"{processes}", "--max-restarts=1"]
        line = [
            sys.executable, *(engine if processes > 1 else []), str(ROOT / "commands" / f"{command}.py"),
            "--comfyui", str(comfyui_path()), "--checkpoint", str(self.checkpoint), *arguments,
            "--", "--cpu", "--input-directory", str(self.inputs), "--output-directory", str(self.outputs),
            *comfyui_arguments,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (self.outputs / "stdout").open("w+") as stdout, subprocess.Popen(
            line, stdout=stdout, stderr=subprocess.STDOUT, env=environment, cwd=self.outputs
        ) as process:  # fmt: skip
            try:
                if kill is not None:
                    _kill_when(kill, process)
                process.wait(TIMEOUT)
            finally:
                process.terminate()  # torchrun then ends its processes
                process.wait(60)
            text = (self.outputs / "stdout").read_text()
        assert process.returncode == status, text
        return text


def _kill_when(due: Callable[[], bool], engine: subprocess.Popen) -> None:
    """Kill torchrun's last process as soon as ``due`` returns true."""
    end = time.monotonic() + TIMEOUT
    while not due():
        assert engine.poll() is None and time.monotonic() < end, (
            "the command ended or timed out before the condition held"
        )
        time.sleep(0.02)
    os.kill(max(map(int, Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text().split())), signal.SIGKILL)
