"""The rooms: imports run one way, ComfyUI is touched at one seam, files stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "trainers", "nodes", "commands")
COMFYUI = {"comfy", "folder_paths", "latent_preview", "comfy_extras", "comfy_execution", "server", "execution"}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
LONGEST = 260


def imports(path: Path) -> list[tuple[int, str]]:
    """(leading dots, module) of every import in the file, also inside functions."""
    found = []
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            found += [(0, alias.name) for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            found.append((statement.level, statement.module or ""))
    return found


def room_of(path: Path, dots: int, module: str) -> str | None:
    """The room that a relative import leads to."""
    parts = path.relative_to(ROOT).parts[: -dots or None]
    return (*parts, *module.split("."))[0] if dots else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_file_keeps_to_its_room(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    seam = "bridge" in path.relative_to(ROOT).parts
    for dots, module in imports(path):
        target = room_of(path, dots, module)
        if target is not None:
            assert ROOMS.index(target) <= ROOMS.index(room), f"{room} imports {target}"
        top = module.split(".")[0]
        assert dots or top not in COMFYUI or seam, f"only nodes/bridge may import {top}"
        assert dots or top != "comfy_api" or room == "nodes", "comfy_api is for nodes"
        assert dots or top not in {*ROOMS, "tools", "tests", "hyperbooth"}, f"{module} must be a relative import"
    assert len(path.read_text().splitlines()) <= LONGEST


def test_nothing_dangerous() -> None:
    for path in FILES:
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.Call) and isinstance(statement.func, ast.Name):
                assert statement.func.id not in {"eval", "exec", "__import__"}, path
        assert not {"pickle", "subprocess", "urllib", "requests", "socket"} & {
            m.split(".")[0] for _, m in imports(path)
        }
