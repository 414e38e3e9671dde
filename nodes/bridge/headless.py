"""ComfyUI without its server: started as its main.py does, with its loaders as functions.

ComfyUI's modules read the command line when they are first imported, so nothing of it is imported here before
:func:`start`.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

LOG_INTERVAL = 10.0
"""Seconds between two lines of progress."""


def start(local_rank: int) -> None:
    """Parse ``sys.argv`` as ComfyUI's main.py does, and register its folders.

    Args:
        local_rank: index of this process on its machine, which is also the index of its GPU, if there are any.
    """
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.cli_args import args

    if torch.cuda.is_available() and not args.cpu:
        torch.cuda.set_device(local_rank)
    _take_folders(args)


def _take_folders(args: Any) -> None:
    import folder_paths
    from utils.extra_config import load_extra_path_config

    own = Path(folder_paths.__file__).with_name("extra_model_paths.yaml")
    for path in (*([str(own)] if own.is_file() else []), *itertools.chain(*(args.extra_model_paths_config or ()))):
        load_extra_path_config(path)
    if args.output_directory:
        folder_paths.set_output_directory(os.path.abspath(args.output_directory))
    if args.input_directory:
        folder_paths.set_input_directory(os.path.abspath(args.input_directory))


def is_debug() -> bool:
    """Return whether ComfyUI was started with ``--verbose DEBUG``."""
    from comfy.cli_args import args

    return "DEBUG" in str(args.verbose)  # a log level, or pairs of log level and file


def load_checkpoint(name: str) -> tuple[Any, Any, Any]:
    """Load MODEL, CLIP and VAE, as Load Checkpoint does.

    Raises:
        ValueError: there is no such file, or it is not a checkpoint with a text encoder.
    """
    import comfy.sd
    import folder_paths

    embeddings = folder_paths.get_folder_paths("embeddings")
    path = _file(name, "checkpoints", "--checkpoint")
    with _reading(name, "--checkpoint"):
        loaded = comfy.sd.load_checkpoint_guess_config(
            path, output_vae=True, output_clip=True, embedding_directory=embeddings
        )
    model, clip, vae = loaded[:3]
    if clip is None:
        raise ValueError(f"--checkpoint {name!r} holds no text encoder; give one with model, text encoder and VAE")
    return model, clip, vae


def load_vision(name: str) -> Any:
    """Load a CLIP_VISION, as Load CLIP Vision does.

    Raises:
        ValueError: there is no such file, or it holds no encoder.
    """
    import comfy.clip_vision

    path = _file(name, "clip_vision", "--clip-vision")
    with _reading(name, "--clip-vision"):
        vision = comfy.clip_vision.load(path)
    if vision is None:
        raise ValueError(f"--clip-vision {name!r} holds no CLIP vision model")
    return vision


@contextmanager
def _reading(name: str, argument: str) -> Iterator[None]:
    """Convert any error of ComfyUI's file readers to a ValueError of one line that names the argument."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{argument} {name!r} cannot be read: {reason}") from error


def _file(name: str, kind: str, argument: str) -> str:
    """Return the path of a file in ComfyUI's folder ``kind``, or ``name`` itself if it is a file's path."""
    import folder_paths

    found = folder_paths.get_full_path(kind, name) or (name if Path(name).is_file() else None)
    if found is None:
        known = ", ".join(folder_paths.get_filename_list(kind)) or "none"
        raise ValueError(f"{argument} {name!r} is neither a file nor in models/{kind}, which has: {known}")
    return found


def log_progress(log: Callable[[str], None] | None) -> None:
    """Redirect ComfyUI's progress bars to ``log``, a line every :data:`LOG_INTERVAL` seconds; None discards them."""
    import comfy.utils

    last = -math.inf

    def hook(done: int, total: int, *_: Any, **__: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_INTERVAL:
            last = time.monotonic()
            log(f"{done} of {total} steps")

    comfy.utils.set_progress_bar_global_hook(hook if log else None)
