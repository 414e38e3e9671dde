"""Removal of files that nobody needs any more; it never fails, since no result depends on it."""

import logging
import math
import time
from pathlib import Path

logger = logging.getLogger("hyperbooth")

LEFTOVER = 600
"""Seconds after which a partial file is what a killed process left, not what another process is writing."""
CLOCKS = 60
"""Seconds by which the clocks of two machines may differ."""


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files that killed processes left in ``folder``."""
    try:
        for path in folder.glob(".*.part"):
            if age(path) > LEFTOVER:
                remove_file(path)
    except OSError as error:
        logger.info("%s could not be searched for partial files: %s", folder.name, error)


def age(path: Path) -> float:
    """Return the seconds since the file was written; infinite if it is gone, or dated in the future."""
    try:
        seconds = time.time() - path.stat().st_mtime
    except OSError:
        return math.inf
    return seconds if seconds > -CLOCKS else math.inf


def remove_file(path: Path) -> None:
    """Remove the file if it is there; if that fails, say so in the log."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s could not be removed: %s", path.name, error)
