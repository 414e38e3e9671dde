"""The structure of the pack: packages import one way, no circles, ComfyUI behind one seam, small files."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "trainers", "nodes", "commands")
ORDER = {
    "models": [
        {"validation", "units", "backbone"},
        {"textual_inversion"},
        {"adapters"},
        {"metadata"},
        {"files"},
        {"hypernetwork", "subject_bank", "hollowed_net"},
    ],
    "models.adapters": [
        {"base", "fused", "inject", "layer_context", "low_rank", "targets", "weight_update"},
        {"lora", "full", "lidb", "para"},
        {"families"},
        {"stack", "parameter_layout", "per_sample", "strength_error"},
    ],
    "trainers": [
        {"checks", "torch_globals"},
        {"engine"},
        {"data"},
        {"diffusion"},
        {"config", "session", "reporting"},
        {"hollowed_net"},
        {"dreambooth"},
        {"subject_bank", "hypernetwork"},
    ],
    "nodes": [
        {"bridge", "common"},
        {"methods"},
        {"data", "training", "adapters", "evaluation"},
        {"hypernetwork"},
        {"extension"},
    ],
}  # fmt: skip
"""Package -> its members in order: each imports members of earlier groups only, and of its own group."""
INDEPENDENT = {"models.metrics"}
"""Packages of a room that no other of it imports, and that import no other."""
COMFYUI = {
    "app", "comfy", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "comfyui_version",
    "cuda_malloc", "execution", "folder_paths", "latent_preview", "main", "middleware", "node_helpers", "protocol",
    "server", "utils",
}  # fmt: skip
"""ComfyUI's own modules, which lie at the top level; ``comfy_api`` is the public one."""
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
LONGEST = 300
MOST_FILES = 14


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """(leading dots, module, name) of every import in the file, also inside functions."""
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            yield from ((0, alias.name, "") for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield from ((statement.level, statement.module or "", alias.name) for alias in statement.names)


def relative(path: Path) -> Iterator[str]:
    """The modules of the pack that the file imports."""
    package = path.relative_to(ROOT).parts[:-1]
    for dots, module, name in imports(path):
        if dots:
            base = ".".join((*package[: len(package) - dots + 1], *filter(None, module.split("."))))
            named = f"{base}.{name}"
            yield named if named in MODULES else base


GRAPH = {module: sorted(set(relative(path)) - {module}) for module, path in MODULES.items()}


def circle_in(graph: Mapping[str, list[str]]) -> list[str]:
    """A circle of the graph, or nothing."""
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        for other in graph.get(module, ()):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    return next((found for module in graph if (found := visit(module))), [])


def member(module: str, package: str) -> str | None:
    """The direct member of ``package`` that ``module`` lies in: a file or a folder."""
    return module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_file_keeps_to_its_room(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    seam = path.relative_to(ROOT).parts[:2] == ("nodes", "bridge")
    for target in relative(path):
        assert ROOMS.index(target.split(".")[0]) <= ROOMS.index(room), f"{room} imports {target}"
    for dots, module, _ in imports(path):
        top = module.split(".")[0]
        assert dots or top not in COMFYUI or seam, f"only nodes/bridge may import {top}"
        assert dots or top != "comfy_api" or room == "nodes", "comfy_api is for nodes"
        assert dots or top not in {*ROOMS, "tools", "tests", "hyperbooth"}, f"{module} must be a relative import"
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_in_order(package: str) -> None:
    place = {name: index for index, group in enumerate(ORDER[package]) for name in group}
    members = {member(module, package) for module in MODULES} - {None}
    alone = {name for name in members if f"{package}.{name}" in INDEPENDENT}
    assert members == place.keys() | alone
    for module, others in GRAPH.items():
        here = member(module, package)
        for other in others:
            there = member(other, package)
            if here is None or there is None or here == there:
                continue
            assert not {here, there} & alone, f"{module} imports {other}"
            assert place[there] <= place[here], f"{module} imports {other}"


def test_no_circle_of_files() -> None:
    assert circle_in(GRAPH) == []


def test_no_file_imports_the_package_it_lies_in() -> None:
    """What a package's ``__init__`` gathers comes after its members, so that none of them may need it."""
    assert [(here, other) for here, others in GRAPH.items() for other in others if here.startswith(f"{other}.")] == []


@pytest.mark.parametrize("depth", [2, 3])
def test_no_circle_of_folders(depth: int) -> None:
    def folder(module: str) -> str:
        path = MODULES.get(module)
        parts = module.split(".") if path is None or path.name == "__init__.py" else module.split(".")[:-1]
        return ".".join(parts[:depth])

    graph: dict[str, list[str]] = {}
    for module, others in GRAPH.items():
        here = folder(module)
        for other in others:
            there = folder(other)
            inside = there.startswith(f"{here}.") or here.startswith(f"{there}.")
            if there != here and not inside:
                graph.setdefault(here, []).append(there)
    assert circle_in(graph) == []


def test_folders_stay_small() -> None:
    counts: dict[Path, int] = {}
    for path in FILES:
        counts[path.parent] = counts.get(path.parent, 0) + (path.name != "__init__.py")
    assert {folder.name: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_nothing_dangerous() -> None:
    for path in FILES:
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.Call) and isinstance(statement.func, ast.Name):
                assert statement.func.id not in {"eval", "exec", "__import__"}, path
        assert not {"pickle", "subprocess", "urllib", "requests", "socket"} & {
            module.split(".")[0] for _, module, _ in imports(path)
        }


def test_unit_tests_import_no_comfyui() -> None:
    """Nor anything that does: the pack's nodes and commands, and the helpers made for them."""
    forbidden = COMFYUI | {"comfy_api", "hyperbooth.nodes", "hyperbooth.commands", "helpers.training", "helpers.banks"}
    forbidden |= {"helpers.adapters", "helpers.torchrun", "nodes"}
    for path in [p for room in ("models", "trainers") for p in (ROOT / "tests" / room).rglob("*.py")]:
        for _, module, name in imports(path):
            parts = [*module.split("."), name]
            named = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
            assert not named & forbidden, f"{path.name} imports {module}"
