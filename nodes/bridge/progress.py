"""ComfyUI's progress bar, with a picture in the running node."""

import time

import comfy.model_management
import comfy.utils
from PIL import Image

LONGEST_SILENCE = 1.0
"""Seconds: ComfyUI's bar keeps still until half a percent is done, and a headless client takes silence for failure."""


class Progress:
    """Shows ``(done, of, picture)``; each call also notices the cancel button."""

    def __init__(self, total: int):
        self._bar = comfy.utils.ProgressBar(total)
        self._shown = -LONGEST_SILENCE

    def __call__(self, done: int, total: int, picture: Image.Image | None = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if picture is not None:
            self._bar.update_absolute(done, total, ("JPEG", picture, None))
        elif time.monotonic() - self._shown < LONGEST_SILENCE or self._bar.hook is None:
            self._bar.update_absolute(done, total)
            return
        else:
            self._bar.hook(done, total, None, node_id=self._bar.node_id)
        self._shown = time.monotonic()
