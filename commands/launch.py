"""How a command starts: ComfyUI and this pack become importable as in a server, then the job runs.

The pack may lie in a folder of any name, so a command is called by its path, and the pack is loaded by path too. What
follows ``--`` are ComfyUI's own arguments, as its main.py takes them.
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
    """Run ``job`` with the arguments of this process."""
    ours, theirs = _parted(sys.argv[1:])
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--comfyui", type=Path, default=ROOT.parent.parent)
    known, ours = parser.parse_known_args(ours)
    _make_importable(known.comfyui.resolve())
    program, sys.argv = Path(sys.argv[0]).name, ["main.py", *theirs]  # where ComfyUI looks for them
    importlib.import_module(f"{PACK}.nodes.bridge.headless").start(int(os.environ.get("LOCAL_RANK", 0)))
    importlib.import_module(f"{PACK}.commands.jobs").run(job, ours, program)


def _parted(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Before and after ``--``."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def _make_importable(comfyui: Path) -> None:
    """ComfyUI's folder instead of this one, whose ``nodes`` and ``models`` would hide ComfyUI's; the pack by path.

    Raises:
        SystemExit: there is no ComfyUI.
    """
    if not (comfyui / "main.py").is_file():
        raise SystemExit(f"--comfyui {comfyui} holds no main.py; give the folder of a ComfyUI")
    sys.path[:] = [str(comfyui), *(entry for entry in sys.path if Path(entry or ".").resolve() not in (HERE, ROOT))]
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])
