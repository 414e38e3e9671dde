"""Read reports and logs by names and figures, so that their wording can change in one place."""

import logging
import re

import pytest


def resumed_at(report: str) -> int:
    """Return the step at which the reported run was resumed, or 0 if it started anew."""
    found = re.search(r"^resumed at step (\d+)$", report, re.MULTILINE)
    return int(found[1]) if found else 0


def line_of(report: str, label: str) -> str:
    """Return the only line of a report that starts with ``label``."""
    (line,) = (line for line in report.splitlines() if line.startswith(label))
    return line


def figures(text: str) -> list[str]:
    """Return the numbers of a text, in order; digits within names such as ``float32`` are none."""
    return re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])", text)


def mentions(text: str, name: str) -> int:
    """Return how often a text names something."""
    return len(re.findall(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def pack_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings that the pack has logged; messages of ComfyUI are left out."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "hyperbooth" and record.levelno >= logging.WARNING
    ]
