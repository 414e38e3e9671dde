"""Start of a command: make ComfyUI and this pack importable as in a server, then run the job.

The pack's folder may have any name, so a command is called by its path, and the pack is loaded by path too. Arguments
after ``--`` are ComfyUI's own, as its main.py takes them.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACK = "hyperbooth"


def launch(job: str) -> None:
    """Run ``job`` with the command line of this process."""
    ours, comfyuis = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--comfyui", type=Path, default=ROOT.parent.parent)
    known, ours = parser.parse_known_args(ours)
    _make_importable(known.comfyui.resolve())
    program, sys.argv = Path(sys.argv[0]).name, ["main.py", *comfyuis]  # ComfyUI parses sys.argv
    importlib.import_module(f"{PACK}.nodes.bridge.headless").start(int(os.environ.get("LOCAL_RANK", 0)))
    importlib.import_module(f"{PACK}.commands.jobs").run(job, ours, program)


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split the arguments at ``--``."""
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:index], arguments[index + 1 :]


def _make_importable(comfyui: Path) -> None:
    """Put ComfyUI's folder on ``sys.path`` and import the pack by path.

    This pack's own folders leave ``sys.path``, because its ``nodes`` and ``models`` would hide ComfyUI's.

    Raises:
        SystemExit: ``comfyui`` is not the folder of a ComfyUI.
    """
    if not (comfyui / "main.py").is_file():
        raise SystemExit(f"--comfyui {comfyui} holds no main.py; give the folder of a ComfyUI")
    sys.path[:] = [str(comfyui), *(entry for entry in sys.path if Path(entry or ".").resolve() not in (HERE, ROOT))]
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])
