"""Tests that measure or limit memory, in a process of their own: what earlier tests freed would still be its own."""

import os
import subprocess
import sys

import pytest

ALONE = "HYPERBOOTH_TEST_ALONE"
alone = pytest.mark.skipif(ALONE not in os.environ, reason="run by the file's test in a process of its own")
"""Marks the tests of that process."""
starts_it = pytest.mark.skipif(ALONE in os.environ, reason="this is that process")
"""Marks the test that starts it."""


def run_alone(file: str, passed: int, *options: str) -> None:
    """Run a file's tests in a new process and require that ``passed`` of them pass.

    Every large block of memory is mapped, and goes back to the system when it is freed.
    """
    environment = {**os.environ, ALONE: "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [
        sys.executable,
        "-I",
        "-m",
        "pytest",
        "-q",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        *options,
    ]
    done = subprocess.run([*command, file], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"{passed} passed" in done.stdout
