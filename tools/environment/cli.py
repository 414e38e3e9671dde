"""Implement the command line of dev.py: select the command, the ComfyUI and the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .build import GB, ensure_environment, remove_environment
from .errors import DevError
from .file_lock import exclusive
from .paths import CHECKOUT, COMFYUI_VERSION, Layout, cache_root
from .serve import address, has_accelerator, prepare_base, server_arguments


@dataclass(frozen=True)
class Workspace:
    """Hold what a command runs in: a complete environment and a ComfyUI."""

    layout: Layout
    comfyui: Path

    @property
    def python(self) -> Path:
        return self.layout.python

    def env(self) -> dict[str, str]:
        """Return the environment variables of the child process, without settings for other Pythons."""
        unwanted = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
        env = {k: v for k, v in os.environ.items() if k not in unwanted}
        ours = {"COMFYUI_PATH": self.comfyui, "HYPERBOOTH_ROOT": CHECKOUT, "PYTHONNOUSERSITE": "1"}
        return env | {k: str(v) for k, v in ours.items()}

    def env_for_computation(self, threads: int = 2) -> dict[str, str]:
        """Return `env` with few threads: small tensors on many threads are slower, and CI machines are small."""
        return {"OMP_NUM_THREADS": str(min(threads, os.cpu_count() or 1))} | self.env()


def workspace(comfyui: str | None) -> Workspace:
    """Build or find the environment, and select the ComfyUI."""
    layout = Layout.of_checkout()
    given = comfyui or os.environ.get("COMFYUI_PATH")
    own = check_comfyui(given) if given else None
    ensure_environment(layout, with_comfyui=own is None)
    return Workspace(layout, own or layout.comfyui)


def check_comfyui(given: str) -> Path:
    """Return the user's ComfyUI folder; raise DevError if it is none."""
    path = Path(given).expanduser().absolute()
    if not (path / "main.py").is_file():
        raise DevError(f"{path} is not a ComfyUI folder: it holds no main.py (--comfyui or COMFYUI_PATH).")
    return path


def run_test(workspace: Workspace, arguments: Sequence[str]) -> int:
    # -I keeps the checkout off sys.path, where its `nodes` and `models` would hide ComfyUI's; which folder
    # holds the tests is in pyproject.toml.
    fast = FAST in arguments
    rest = [argument for argument in arguments if argument != FAST]
    parallel = _parallel(rest)
    command = [workspace.python, "-I", "-m", "pytest", *parallel, *(UNIT_TESTS if fast else ()), *rest]
    return become(command, workspace.env_for_computation(threads=1 if parallel else 2), CHECKOUT)


FAST = "--fast"
UNIT_TESTS = ("tests/models", "tests/trainers", "tests/test_architecture.py")


def _parallel(arguments: Sequence[str]) -> Sequence[str]:
    """Return pytest's options for two processes, or none if a path is given.

    All that the processes start computes on one core: a second thread that waits for a busy core doubled a server's
    time. One file is sooner done in one process.
    """
    if any(not argument.startswith("-") for argument in arguments):
        return ()
    return "-n2", "--dist=loadfile", "--no-loadscope-reorder"  # but in the order of tests/conftest.py


def run_demo(workspace: Workspace, arguments: Sequence[str]) -> int:
    return become([workspace.python, CHECKOUT / "tools" / "demo" / "main.py", *arguments], workspace.env())


def run_bench(workspace: Workspace, arguments: Sequence[str]) -> int:
    script = benchmark_script(arguments[:1])
    return become([workspace.python, script, *arguments[1:]], workspace.env_for_computation())


def run_serve(workspace: Workspace, arguments: Sequence[str]) -> int:
    base = workspace.layout.serve
    prepare_base(base, workspace.comfyui)
    print(f"ComfyUI:  {workspace.comfyui}\nModels:   {base / 'models'}\nResults:  {base / 'output'}")
    print(f"Open {address(arguments)} once it says so.", flush=True)
    arguments = server_arguments(base, arguments, has_accelerator(workspace.python))
    return become([workspace.python, workspace.comfyui / "main.py", *arguments], workspace.env())


def run_env(workspace: Workspace, arguments: Sequence[str]) -> int:
    print(f"python:  {workspace.python}\nComfyUI: {workspace.comfyui}\ncache:   {workspace.layout.root}")
    return 0


def benchmark_script(name: Sequence[str]) -> Path:
    """Return the file of a benchmark; raise DevError with the known names for any other name."""
    folder = CHECKOUT / "benchmarks"
    known = sorted(p.stem for p in folder.glob("*.py"))
    if not name or name[0] not in known:
        problem = f"There is no benchmark {name[0]!r}." if name else "Which benchmark?"
        raise DevError(f"{problem} There are: {', '.join(known) or 'none'}.")
    return folder / f"{name[0]}.py"


def clean(layout: Layout) -> int:
    """Remove environments and ComfyUI folders of other locks and other Pythons, and leftovers of builds."""
    keep = {layout.environment, layout.comfyui, layout.log}
    kinds = ("env-*", "comfyui-*", "build-*.log", "download", "tmp")
    freed = 0
    with exclusive(layout.lock, "Another dev.py is building; waiting for it."):
        for path in sorted({path for kind in kinds for path in layout.root.glob(kind)} - keep):
            size = size_of(path)
            print(f"removing {path} ({size / GB:.2f} GB)", flush=True)
            remove_environment(path) if path.is_dir() else path.unlink()
            freed += size
    print(f"{freed / GB:.2f} GB freed; {layout.environment} is this checkout's and stays.")
    return 0


def size_of(path: Path) -> int:
    """Return the bytes that a file or folder takes, not following links."""
    inside = path.rglob("*") if path.is_dir() else ()
    return sum(p.lstat().st_size for p in (path, *inside))


def become(command: Sequence[object], env: dict[str, str], cwd: Path | None = None) -> int:
    """Replace this process by the command, so that exit code and Ctrl-C are those of the command."""
    arguments = [str(part) for part in command]
    sys.stdout.flush()
    if os.name == "nt":
        return _wait_for(arguments, env, cwd)
    if cwd:
        os.chdir(cwd)
    os.execve(arguments[0], arguments, env)


def _wait_for(arguments: Sequence[str], env: dict[str, str], cwd: Path | None) -> int:
    """Run the command and wait: Windows cannot replace a process. The child handles Ctrl-C, which both receive."""
    with subprocess.Popen(arguments, env=env, cwd=cwd) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


@dataclass(frozen=True)
class Command:
    """Describe one command of dev.py: its help, its function and its check."""

    summary: str
    help: str
    run: Callable[[Workspace, Sequence[str]], int]
    check: Callable[[Sequence[str]], object] = lambda arguments: None  # refuses invalid arguments before building


COMMANDS = {
    "demo": Command(
        "train on a synthetic subject and show the result, from nothing",
        "Arguments go to tools/demo/main.py; `dev.py demo -- --help` shows its options.",
        run_demo,
    ),
    "test": Command(
        "run the tests",
        "Arguments go to pytest, paths relative to the checkout: dev.py test -x tests/models\n"
        "--fast runs the unit tests alone, which import no ComfyUI: dev.py test --fast\n"
        "`dev.py test -- --help` shows pytest's options.",
        run_test,
    ),
    "serve": Command(
        "start ComfyUI with this checkout as a custom node pack",
        "Arguments go to ComfyUI: --port 8189, --models-directory PATH (models you already have).\n"
        "Without a GPU, --cpu is added. Models, results and settings live in serve/ in the cache folder.",
        run_serve,
    ),
    "bench": Command(
        "run one benchmark: dev.py bench NAME [--json FILE]",
        "NAME is a file in benchmarks/; further arguments go to it. Without NAME, the names are listed.",
        run_bench,
        check=lambda arguments: benchmark_script(arguments[:1]),
    ),
    "env": Command("build the environment if needed and print where it is", "Takes no arguments.", run_env),
}
CLEAN = "remove environments of other lock files and other Pythons"


def usage() -> str:
    """Return the help of dev.py."""
    lines = [f"  {name:6} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python dev.py [--comfyui PATH] COMMAND [arguments]\n",
            *lines,
            f"  clean  {CLEAN}\n",
            f"  --comfyui PATH  use that ComfyUI, not the pinned {COMFYUI_VERSION} (or set COMFYUI_PATH)",
            "  COMMAND --help  more about one command\n",
            "The first command that needs it builds an environment of about 6 GB in the cache folder, which",
            "takes several minutes and the network; after that neither is needed. The cache folder is",
            f"{cache_root()}; HYPERBOOTH_CACHE moves it.",
        ]
    )


def command_help(name: str) -> str:
    """Return the help of one command."""
    if name == "clean":
        return f"dev.py clean: {CLEAN}"
    return f"dev.py {name}: {COMMANDS[name].summary}\n{COMMANDS[name].help}"


def split_comfyui(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take `--comfyui PATH` out of the arguments, at any position before a `--`."""
    rest = list(arguments)
    end = rest.index("--") if "--" in rest else len(rest)
    for index, argument in enumerate(rest[:end]):
        if argument.startswith("--comfyui="):
            return argument.partition("=")[2], rest[:index] + rest[index + 1 :]
        if argument == "--comfyui":
            if index + 1 >= end:
                raise DevError("--comfyui needs the path of a ComfyUI folder.")
            return rest[index + 1], rest[:index] + rest[index + 2 :]
    return None, rest


def dispatch(arguments: Sequence[str]) -> int:
    """Run the command of the command line."""
    comfyui, rest = split_comfyui(arguments)
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = rest[0], rest[1:]
    if name != "clean" and name not in COMMANDS:
        raise DevError(f"There is no command {name!r}. There are: {', '.join(COMMANDS)}, clean.")
    if rest[:1] in (["-h"], ["--help"]):
        print(command_help(name))
        return 0
    if name == "clean":
        return clean(Layout.of_checkout())
    rest = rest[1:] if rest[:1] == ["--"] else rest
    COMMANDS[name].check(rest)
    return COMMANDS[name].run(workspace(comfyui), rest)


def main(arguments: Sequence[str]) -> int:
    """Run dev.py, and print failures without a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a build stops its pip on the way out
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `dev.py --help | head` is no failure
    try:
        return dispatch(arguments)
    except DevError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"dev.py: {error}\nIf the cache folder is at fault, HYPERBOOTH_CACHE moves it.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
