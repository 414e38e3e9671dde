"""Metric encoders in ComfyUI: their model folders, memory management, and CLIP_VISION as an alternative."""

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
"""Folder in ComfyUI's models -> the kinds of encoder that it may hold, and whether they embed texts."""
EXAMPLES = {"dino": "facebook/dinov2-base", "clip_score": "openai/clip-vit-large-patch14"}
"""Models with a model.safetensors on their Hugging Face page: clip-vit-base-patch32 has pickled weights only."""
NONE = "none"
Files = tuple[tuple[str, int, int], ...]
"""Name, modification time in ns and size of each file of a folder."""


def register_encoder_folders() -> None:
    """Register ``models/dino`` and ``models/clip_score`` with ComfyUI, also as names in extra_model_paths.yaml."""
    for kind in FOLDERS:
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))


def encoder_names(kind: str) -> list[str]:
    """List ``none`` and the names of the folders that may hold an encoder."""
    return [NONE, *sorted({name for root in _roots(kind) for name in _folders(root)})]


def _folders(root: Path) -> list[str]:
    """List the visible folders in ``root``, or nothing if it cannot be read."""
    try:
        return [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def _roots(kind: str) -> list[Path]:
    return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]


@dataclass(frozen=True)
class Embedder:
    """An encoder of images, and of texts if it has a text model.

    Args:
        name: the encoder's kind and size, for reports.
        embed_images: (images ``[H, W, 3]`` in [0, 1], callback with the number done) -> ``[n, d]``.
        embed_text: prompt -> ``[1, d]``, or None.
        is_truncated: whether a prompt exceeds the text model's length.
    """

    name: str
    embed_images: Callable[[Sequence[Tensor], Callable[[int], None]], Tensor]
    embed_text: Callable[[str], Tensor] | None = None
    is_truncated: Callable[[str], bool] = lambda _prompt: False


def open_embedder(kind: str, name: str, vision: Any = None) -> Embedder | None:
    """Return the embedder by ``vision`` if given, else by the encoder of that name; None for ``none``.

    Args:
        kind: ``dino`` or ``clip_score``.
        name: of the encoder's folder, or ``none``.
        vision: a CLIP_VISION, or None.

    Raises:
        ValueError: there is no such encoder, it cannot be loaded, or ``vision`` is of the other kind.
    """
    if vision is not None:
        _require_kind(kind, vision)
        return _vision_embedder(vision)
    return None if name == NONE else _folder_embedder(kind, name)


def installation_hint(kind: str) -> str:
    """Describe how to install an encoder of a kind."""
    files = f"{encoders.CONFIGURATION}, {encoders.PREPROCESSING}, {encoders.WEIGHTS}"
    tokenizer = f", {encoders.TOKENIZER[0][0]}" if FOLDERS[kind][1] else ""
    name = EXAMPLES[kind]
    return (
        f"copy {files}{tokenizer} of a model such as {name} from its Hugging Face page into "
        f"models/{kind}/{name.split('/')[1]}, press R, and choose it"
    )


def _folder(kind: str, name: str) -> Path:
    """Return the encoder's folder of that name.

    Raises:
        ValueError: there is none.
    """
    known = name in encoder_names(kind)  # '..' and the like are not
    folder = next((root / name for root in _roots(kind) if known and (root / name).is_dir()), None)
    if folder is None:
        raise ValueError(
            f"{kind} encoder {name!r:.80} is in none of the folders models/{kind}; {installation_hint(kind)}"
        )
    return folder


def require_encoder_files(kind: str, name: str) -> None:
    """Check without loading that the folder of that name exists and holds the files of an encoder.

    Raises:
        ValueError: the folder or one of the files is missing, or is of another kind.
    """
    encoders.check_encoder(_folder(kind, name), *FOLDERS[kind])


def encoder_files(kind: str, name: str) -> Files:
    """Return the state of the encoder's files, which changes when they do; empty if there is no such encoder."""
    try:
        return _files(_folder(kind, name))
    except (ValueError, OSError):
        return ()


def _folder_embedder(kind: str, name: str) -> Embedder:
    folder = _folder(kind, name)
    opened = _opened(kind, folder, _files(folder))
    encoder = opened.encoder

    def embed_images(images: Sequence[Tensor], on_done: Callable[[int], None]) -> Tensor:
        return encoder.embed_images(images, _load(opened), on_done)

    def embed_text(prompt: str) -> Tensor:
        return encoder.embed_text(prompt, _load(opened))

    if encoder.tokenizer is None:
        return Embedder(encoder.name, embed_images)
    return Embedder(encoder.name, embed_images, embed_text, encoder.is_truncated)


@dataclass(frozen=True, eq=False)
class OpenedEncoder:
    """An encoder under ComfyUI's memory management.

    Args:
        patcher: ComfyUI's ModelPatcher of its network.
        encoder: the encoder.
    """

    patcher: Any
    encoder: Encoder


_OPENED: WeakValueDictionary[tuple[str, Path, Files], OpenedEncoder] = WeakValueDictionary()
"""The encoders in memory: held by a running node, or by ComfyUI's list of loaded models, see :func:`_load`."""


def _load(opened: OpenedEncoder) -> torch.device:
    """Load the encoder onto its device and return the device.

    It is loaded whole, because transformers' layers compute on the device of their weights. ComfyUI's entry of the
    loaded model holds the encoder for the next node; when ComfyUI unloads it, its memory is freed.
    """
    management = comfy.model_management
    management.load_models_gpu([opened.patcher], force_full_load=True)
    for loaded in management.current_loaded_models:
        if loaded.model is opened.patcher:
            loaded.hyperbooth_encoder = opened
    return opened.patcher.load_device


def _opened(kind: str, folder: Path, files: Files) -> OpenedEncoder:
    """Return the encoder in ``folder`` from memory, or read it if it is not there or its files have changed."""
    found = _OPENED.get((kind, folder, files))
    if found is None:
        found = _OPENED[kind, folder, files] = _read(kind, folder)
    return found


def _read(kind: str, folder: Path) -> OpenedEncoder:
    with torch.inference_mode(False):
        encoder = encoders.load_encoder(folder, *FOLDERS[kind])
    device = comfy.model_management.text_encoder_device()
    if comfy.model_management.should_use_fp16(device):
        encoder.network.half()
    offload = comfy.model_management.text_encoder_offload_device()
    wrapper = nn.ModuleList([encoder.network])  # ComfyUI sets attributes that transformers' models refuse
    patcher = comfy.model_patcher.ModelPatcher(wrapper, load_device=device, offload_device=offload)
    return OpenedEncoder(patcher, encoder)


def _files(folder: Path) -> Files:
    """Return the state of the folder's files, which also changes if a file is replaced by an older one."""
    found = ((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    return tuple(sorted((name, state.st_mtime_ns, state.st_size) for name, state in found))


def _require_kind(kind: str, vision: Any) -> None:
    """Check that a DINO score gets a DINO, and a CLIP score a CLIP or SigLIP."""
    if (kind == "dino") != vision.model_type.startswith("dino"):
        name, expected = ("dino_vision", "a DINO") if kind == "dino" else ("clip_vision", "a CLIP or SigLIP")
        raise ValueError(f"{name} is a {vision.model_type}; expected {expected} from the stock Load CLIP Vision")


def _vision_embedder(vision: Any) -> Embedder:
    """Return the embedder by a CLIP_VISION of the stock loader, with its own preprocessing."""
    name = f"CLIP_VISION ({encoders.described(vision.model_type, SimpleNamespace(**vision.config))})"

    def embed_images(images: Sequence[Tensor], on_done: Callable[[int], None]) -> Tensor:
        rows: list[Tensor] = []
        for batch in _batches(images):
            embedding = encode_images(vision, torch.stack(batch))[1].float().cpu()
            rows += embedding.flatten(1, -2).mean(1) if embedding.ndim > 2 else embedding
            on_done(len(rows))
        embeddings = torch.stack(rows)
        if not all_finite(embeddings):
            raise ValueError(f"the {name} returned NaN or infinite embeddings; its file may be damaged")
        return embeddings

    return Embedder(name, embed_images)


def _batches(images: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield batches of consecutive images of one size, in their order."""
    for _, group in groupby(images, key=lambda image: image.shape):
        same_size = list(group)
        yield from (same_size[start : start + BATCH_SIZE] for start in range(0, len(same_size), BATCH_SIZE))
