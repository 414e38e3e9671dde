"""Lock between processes by a file lock that the operating system releases when its holder dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if os.name == "nt":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def exclusive(path: Path, waiting: str) -> Iterator[int]:
    """Hold the lock at `path`; while another process holds it, print `waiting` once and wait.

    Yields the file descriptor. A child process that inherits it keeps the lock held even if this process is
    killed, so a pip left behind never writes into a folder that the next run is rebuilding.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(fd):
            print(waiting, flush=True)
            while not _try_lock(fd):
                time.sleep(0.2)
        yield fd
    finally:
        os.close(fd)
