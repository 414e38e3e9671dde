"""Subject banks in ComfyUI: their folders, and what a build needs of a loaded model."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfyui_version
import folder_paths
import torch

from ...models.metadata.base_fingerprint import fingerprint
from ...models.subject_bank.manifest import MANIFEST
from ...models.subject_bank.shards import shard_state
from ...trainers.config import TrainingOptions
from ...trainers.data.build_dataset import Encoders
from ...trainers.subject_bank.build import BankBackend
from .adapters.patching import base_weights
from .folders import MAX_NAME_BYTES, shown, unusable_part
from .images.vae import encode_pixels, latent_cell
from .model.denoiser import prediction_of
from .model.layers import architecture, layer_shapes, trainable_layers
from .text.conditioning import encode_prompt
from .training_session import training_session

BANK_FOLDER = "hyperbooth_banks"
"""Folder of banks in ComfyUI's models and output folders."""
MAX_CACHED_PROMPTS = 256
"""Prompts whose conditioning is cached while a bank is built, so that common captions are encoded once."""
FINGERPRINT_LAYERS = 64
"""Layers of a model, and weights of a VAE, of which a bank's manifest records sampled values."""


def register_bank_folders() -> None:
    """Register ``models/hyperbooth_banks`` with ComfyUI, also as a name in extra_model_paths.yaml."""
    folder_paths.add_model_folder_path(BANK_FOLDER, str(Path(folder_paths.models_dir) / BANK_FOLDER))


def bank_names() -> list[str]:
    """List the names of all banks in the output and models folders."""
    found = {path.parent.name for root in _roots() for path in root.glob(f"*/{MANIFEST}")}
    return sorted(found)


def bank_path(name: str) -> Path:
    """Return the folder of the bank of that name, preferably in the output folder.

    Raises:
        ValueError: there is none.
    """
    found = (root / name for root in _roots())
    path = next((path for path in found if name in bank_names() and (path / MANIFEST).is_file()), None)
    if path is None:
        raise ValueError(
            f"bank_name {shown(name)} is in none of output/{BANK_FOLDER} and models/{BANK_FOLDER}; press R to refresh "
            "the list"
        )
    return path


def new_bank_path(name: str) -> Path:
    """Return the folder in which a bank of that name is built.

    Raises:
        ValueError: the name is not a folder's name, or a bank of that name lies in another folder, which the new one
            would hide.
    """
    name = name.strip()
    plain = name.isprintable() and Path(name).name == name and not {"/", "\\", ":"} & set(name)
    if not name or not plain or name.startswith(".") or len(name.encode()) > MAX_NAME_BYTES or unusable_part(name):
        raise ValueError(f"bank_name {shown(name)} is no folder's name; give one such as 'people'")
    path = _output() / name
    for root in _roots():
        if (root / name / MANIFEST).exists() and not (path / MANIFEST).exists():
            raise ValueError(
                f"bank_name {shown(name)} is in a folder of models already; give another name, or move that one to "
                f"output/{BANK_FOLDER}, where banks are extended"
            )
    return path


def default_bank_name(source: Path) -> str:
    """Return a bank's default name: that of the image folder, joined with its parents below the input folder."""
    return "_".join(source.relative_to(Path(os.path.abspath(folder_paths.get_input_directory()))).parts)


_seen: dict[Path, tuple[list[Any], int]] = {}
"""Folder of a bank -> its last known state, and the number of changes by others."""


def folder_version(folder: Path) -> int:
    """Count the changes of the bank in ``folder`` by others, seen by this process: shards removed or added."""
    state = shard_state(folder)
    before, count = _seen.get(folder, (state, 0))
    _seen[folder] = state, count + (before != state)
    return _seen[folder][1]


def accept_folder_state(folder: Path) -> None:
    """Record the present state of the bank in ``folder``, so that this process's own changes do not count."""
    _seen[folder] = shard_state(folder), _seen.get(folder, ([], 0))[1]


def bank_backend(model: Any, clip: Any, vae: Any, options: TrainingOptions, text_encoder: bool) -> BankBackend:
    """Return what a bank build needs of a loaded model.

    Args:
        model: the MODEL.
        clip: the CLIP; encodes the prompts, and trains if ``text_encoder``.
        vae: the VAE.
        options: the training options.
        text_encoder: whether the adapters include the text encoder.
    """
    trained = clip if text_encoder else None
    return BankBackend(
        encoders=Encoders(
            encode_image=lambda pixels: encode_pixels(vae, pixels),
            encode_prompt=lru_cache(maxsize=MAX_CACHED_PROMPTS)(lambda prompt: encode_prompt(clip, prompt)),
            latent_cell=latent_cell(vae),
            on_progress=lambda *_: None,
        ),
        open_session=lambda subject, batch_size: training_session(
            model, options, subject, batch_size=batch_size, clip=trained
        ),
        shapes=layer_shapes(trainable_layers(model, trained)),
        base=base_model_record(model, clip, vae),
        versions={"comfyui": comfyui_version.__version__, "torch": str(torch.__version__)},
    )


def base_model_record(model: Any, clip: Any, vae: Any = None) -> dict[str, Any]:
    """Return the record of the base model for a bank and what is made from it.

    Args:
        model: the MODEL.
        clip: the CLIP, or None to leave out the text encoder's weights.
        vae: the VAE, or None to leave out its weights.

    Returns:
        Architecture, prediction and latent cell as in an adapter's metadata, and sampled values of the weights.
    """
    layers = sorted(trainable_layers(model, clip))
    sample = dict(fingerprint(layers, base_weights(model, clip), FINGERPRINT_LAYERS))
    if vae is not None:
        weights = {f"vae.{name}": value for name, value in vae.first_stage_model.state_dict().items() if value.ndim > 1}
        sample |= fingerprint(sorted(weights), lambda name: weights[name].float().cpu(), FINGERPRINT_LAYERS)
    return {
        "base": architecture(model),
        "prediction": prediction_of(model.get_model_object("model_sampling")).value,
        "latent_cell": model.model.latent_format.spacial_downscale_ratio,
        "weights": sample,
    }


def _roots() -> list[Path]:
    """Return the folders that hold banks, the output folder first."""
    register_bank_folders()
    return [_output(), *map(Path, folder_paths.get_folder_paths(BANK_FOLDER))]


def _output() -> Path:
    return Path(folder_paths.get_output_directory()) / BANK_FOLDER
