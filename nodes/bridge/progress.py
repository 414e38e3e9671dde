"""ComfyUI's progress bar, with a picture in the running node."""

import comfy.model_management
import comfy.utils
from PIL import Image


class Progress:
    """Shows ``(done, of, picture)``; each call also notices the cancel button."""

    def __init__(self, total: int):
        self._bar = comfy.utils.ProgressBar(total)

    def __call__(self, done: int, total: int, picture: Image.Image | None = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(done, total, None if picture is None else ("JPEG", picture, None))
