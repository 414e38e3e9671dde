"""ComfyUI's progress bar, with a preview image in the running node."""

import time

import comfy.model_management
import comfy.utils
from PIL import Image

MAX_UPDATE_INTERVAL = 1.0
"""Seconds between updates at most: ComfyUI's bar skips updates below half a percent, and headless clients would time
out."""


def is_image_shown() -> bool:
    """Return whether ComfyUI passes preview images on: a server does, a script that calls nodes does not."""
    return comfy.utils.PROGRESS_BAR_HOOK is not None and comfy.utils.PROGRESS_BAR_ENABLED


class Progress:
    """Progress callback ``(done, total, image)`` of a node; each call raises if the user has pressed cancel.

    Args:
        total: number of steps.
    """

    def __init__(self, total: int):
        self._bar = comfy.utils.ProgressBar(total)
        self._shown = -MAX_UPDATE_INTERVAL

    def __call__(self, done: int, total: int, image: Image.Image | None = None) -> None:
        """Show the progress, and ``image`` if given.

        Args:
            done: steps done.
            total: number of steps, which may differ from the initial one.
            image: a preview, or None.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        if image is not None:
            self._bar.update_absolute(done, total, ("JPEG", image, None))
        elif time.monotonic() - self._shown < MAX_UPDATE_INTERVAL or self._bar.hook is None:
            self._bar.update_absolute(done, total)
            return
        else:
            self._bar.hook(done, total, None, node_id=self._bar.node_id)
        self._shown = time.monotonic()
