"""Encoders for scores in ComfyUI: their folders, its memory management, and CLIP_VISION in their place."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from torch import Tensor, nn

from ....models.metrics import encoders
from ....models.metrics.encoders import CLIP, DINO, Encoder
from ....models.metrics.scores import all_finite
from .clip_vision import BATCH_SIZE, encode_images

FOLDERS = {"dino": (DINO, False), "clip_score": (CLIP, True)}
"""Folder in ComfyUI's models -> what may be in it, and whether it embeds texts."""
EXAMPLES = {"dino": "facebook/dinov2-base", "clip_score": "openai/clip-vit-large-patch14"}
"""Models whose pages have model.safetensors: that of clip-vit-base-patch32 has pickled weights only."""
NONE = "none"
Files = tuple[tuple[str, int, int], ...]
"""Name, time and size of each file of a folder."""


def register_encoder_folders() -> None:
    """ComfyUI knows ``models/dino`` and ``models/clip_score``, also as names in extra_model_paths.yaml."""
    for kind in FOLDERS:
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))


def encoder_names(kind: str) -> list[str]:
    """Folders that hold a model; ``none`` first."""
    return [NONE, *sorted({name for root in _roots(kind) for name in _folders(root)})]


def _folders(root: Path) -> list[str]:
    """What a root holds that may be an encoder; nothing if it cannot be read."""
    try:
        return [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def _roots(kind: str) -> list[Path]:
    return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]


@dataclass(frozen=True)
class Embedder:
    """Embeds pictures, and texts if it can.

    Args:
        name: what it is, for reports.
        images: pictures -> ``[n, d]``.
        text: prompt -> ``[1, d]``, or None.
        is_cut: whether a prompt is longer than it reads.
    """

    name: str
    images: Callable[[Sequence[Tensor], Callable[[int], None]], Tensor]
    text: Callable[[str], Tensor] | None = None
    is_cut: Callable[[str], bool] = lambda _prompt: False


def open_embedder(kind: str, name: str, vision: Any = None) -> Embedder | None:
    """The CLIP_VISION ``vision`` if there is one, else the encoder of that name; None for ``none``.

    Raises:
        ValueError: there is no such encoder, or it cannot be loaded, or ``vision`` is of the other kind.
    """
    if vision is not None:
        _check_vision(kind, vision)
        return _of_vision(vision)
    return None if name == NONE else _of_folder(kind, name)


def installation_hint(kind: str) -> str:
    """What to do where an encoder is needed and none is chosen."""
    root, files = _roots(kind)[0], f"{encoders.CONFIGURATION}, {encoders.PREPROCESSING}, {encoders.WEIGHTS}"
    words = f", {encoders.TOKENIZER[0][0]}" if FOLDERS[kind][1] else ""
    name = EXAMPLES[kind]
    return (
        f"copy {files}{words} of a model such as {name} from its Hugging Face page into "
        f"{root / name.split('/')[1]}, press R, and choose it"
    )


def _folder(kind: str, name: str) -> Path:
    """The folder of that name.

    Raises:
        ValueError: there is none.
    """
    known = name in encoder_names(kind)  # no other folder, as '..' would be
    folder = next((root / name for root in _roots(kind) if known and (root / name).is_dir()), None)
    if folder is None:
        roots = ", ".join(map(str, _roots(kind)))
        raise ValueError(f"{kind} encoder {name!r} is in none of {roots}; {installation_hint(kind)}")
    return folder


def require_encoder_files(kind: str, name: str) -> None:
    """The folder of that name is there and has all that an encoder needs, as far as is seen without loading it.

    Raises:
        ValueError: it is not, or has not.
    """
    encoders.check_encoder(_folder(kind, name), *FOLDERS[kind])


def encoder_files(kind: str, name: str) -> Files:
    """What changes when the encoder of that name does; nothing if there is none."""
    try:
        return _files(_folder(kind, name))
    except (ValueError, OSError):
        return ()


def _of_folder(kind: str, name: str) -> Embedder:
    folder = _folder(kind, name)
    opened = _opened(kind, folder, _files(folder))
    encoder = opened.encoder

    def images(pictures: Sequence[Tensor], on_done: Callable[[int], None]) -> Tensor:
        return encoder.embed_images(pictures, _load(opened), on_done)

    def text(prompt: str) -> Tensor:
        return encoder.embed_text(prompt, _load(opened))

    if encoder.tokenizer is None:
        return Embedder(encoder.name, images)
    return Embedder(encoder.name, images, text, encoder.is_truncated)


@dataclass(frozen=True, eq=False)
class Opened:
    """An encoder under ComfyUI's memory management."""

    patcher: Any
    encoder: Encoder


_OPENED: WeakValueDictionary[tuple[str, Path, Files], Opened] = WeakValueDictionary()
"""Those that somebody holds: a node that runs, or ComfyUI, see :func:`_load`."""


def _load(opened: Opened) -> torch.device:
    """Onto its device, whole: transformers' layers compute where their numbers are. Until ComfyUI unloads it, it is
    ready for the next node; then its memory is free."""
    management = comfy.model_management
    management.load_models_gpu([opened.patcher], force_full_load=True)
    for loaded in management.current_loaded_models:
        if loaded.model is opened.patcher:
            loaded.hyperbooth_encoder = opened
    return opened.patcher.load_device


def _opened(kind: str, folder: Path, files: Files) -> Opened:
    """The encoder there; read again if its files have changed."""
    found = _OPENED.get((kind, folder, files))
    if found is None:
        found = _OPENED[kind, folder, files] = _read(kind, folder)
    return found


def _read(kind: str, folder: Path) -> Opened:
    with torch.inference_mode(False):
        encoder = encoders.load_encoder(folder, *FOLDERS[kind])
    device = comfy.model_management.text_encoder_device()
    if comfy.model_management.should_use_fp16(device):
        encoder.network.half()
    offload = comfy.model_management.text_encoder_offload_device()
    held = nn.ModuleList([encoder.network])  # ComfyUI sets attributes that transformers' models do not let be set
    patcher = comfy.model_patcher.ModelPatcher(held, load_device=device, offload_device=offload)
    return Opened(patcher, encoder)


def _files(folder: Path) -> Files:
    """What changes if a file does: also if an older one takes its place."""
    found = ((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    return tuple(sorted((name, state.st_mtime_ns, state.st_size) for name, state in found))


def _check_vision(kind: str, vision: Any) -> None:
    """A score named after DINO is by a DINO, and one named after CLIP is not: as in the folders."""
    if (kind == "dino") != vision.model_type.startswith("dino"):
        name, expected = ("dino_vision", "a DINO") if kind == "dino" else ("clip_vision", "a CLIP or SigLIP")
        raise ValueError(f"{name} is a {vision.model_type}; expected {expected} from the stock Load CLIP Vision")


def _of_vision(vision: Any) -> Embedder:
    """A CLIP_VISION of the stock loader, with its own preprocessing."""
    name = f"CLIP_VISION ({encoders.described(vision.model_type, SimpleNamespace(**vision.config))})"

    def images(pictures: Sequence[Tensor], on_done: Callable[[int], None]) -> Tensor:
        rows: list[Tensor] = []
        for batch in _batches(pictures):
            embedding = encode_images(vision, torch.stack(batch))[1].float().cpu()
            rows += embedding.flatten(1, -2).mean(1) if embedding.ndim > 2 else embedding
            on_done(len(rows))
        embeddings = torch.stack(rows)
        if not all_finite(embeddings):
            raise ValueError(f"the {name} gave embeddings that are no numbers; its file may be damaged")
        return embeddings

    return Embedder(name, images)


def _batches(pictures: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """As many as go through at once, all of a size, in their order."""
    for _, alike in groupby(pictures, key=lambda picture: picture.shape):
        rest = list(alike)
        yield from (rest[start : start + BATCH_SIZE] for start in range(0, len(rest), BATCH_SIZE))
