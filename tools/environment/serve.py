"""Prepare ComfyUI for `serve`: a base directory for models and results, with the pack linked in."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.comfy_harness import base_directory
from tools.comfy_harness.symlinks import link, unlink

from .paths import CHECKOUT

PACK = "ComfyUI-HyperBooth"


def prepare_base(base: Path, comfyui: Path) -> None:
    """Make ComfyUI's base directory: it lists `custom_nodes` at start and expects the folder to be there."""
    for name in ("custom_nodes", "user", "input", "output"):
        (base / name).mkdir(parents=True, exist_ok=True)
    kinds = comfyui / "models"
    for kind in kinds.iterdir() if kinds.is_dir() else ():
        if kind.is_dir():
            (base / "models" / kind.name).mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / PACK
    unlink(pack)  # it may lead to another checkout, or be an outdated copy of this one
    link(CHECKOUT, pack)


def server_arguments(base: Path, given: Sequence[str], accelerator: bool) -> list[str]:
    """Return the arguments for ComfyUI's main.py; the user's come last and take precedence."""
    cpu = [] if accelerator or "--cpu" in given else ["--cpu"]
    return [*base_directory.arguments(base), *cpu, *given]


def has_accelerator(python: Path) -> bool:
    """Return whether the environment's torch sees a GPU; without one ComfyUI stops unless given --cpu."""
    question = "import sys, torch; sys.exit(not torch.accelerator.is_available())"
    return subprocess.run([str(python), "-I", "-c", question], capture_output=True).returncode == 0


def address(arguments: Sequence[str]) -> str:
    """Return the URL to open, from ComfyUI's own options."""
    port = option_value(arguments, "--port") or "8188"
    return f"http://127.0.0.1:{port}"


def option_value(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of the last `name VALUE` or `name=VALUE` among the arguments."""
    found = None
    for index, argument in enumerate(arguments):
        if argument.startswith(name + "="):
            found = argument.partition("=")[2]
        elif argument == name and index + 1 < len(arguments):
            found = arguments[index + 1]
    return found
