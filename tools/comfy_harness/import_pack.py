"""Import the pack and ComfyUI as Python packages in this process."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_pack(name: str = "hyperbooth") -> ModuleType:
    """Import the repository root as the package ``name``, by path, as ComfyUI does.

    The root never goes on ``sys.path``: its ``nodes`` and ``models`` would hide ComfyUI's.
    """
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def comfyui_path() -> Path:
    """Return the ComfyUI folder that COMFYUI_PATH names (dev.py sets it)."""
    path = os.environ.get("COMFYUI_PATH")
    if not path or not (Path(path) / "main.py").is_file():
        raise RuntimeError("COMFYUI_PATH names no ComfyUI; run this through 'python dev.py ...'")
    return Path(path)


def import_comfyui() -> None:
    """Make ``comfy``, ``comfy_api`` and ``folder_paths`` importable here, on the CPU where there is no GPU."""
    path = str(comfyui_path())
    sys.path[:] = [path, *(entry for entry in sys.path if entry not in (path, str(ROOT)))]
    import torch
    from comfy.cli_args import args

    if not torch.cuda.is_available():
        args.cpu = True
