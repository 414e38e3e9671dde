"""Banks of subjects in ComfyUI: their folders, and what building one needs of the loaded model."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import comfyui_version
import folder_paths
import torch

from ...models.metadata.base_fingerprint import fingerprint
from ...models.subject_bank.manifest import MANIFEST
from ...models.subject_bank.shards import folder_state
from ...trainers.config import TrainingOptions
from ...trainers.data.build_dataset import Encoders
from ...trainers.subject_bank.build import BankBuilder
from .adapters.patching import base_weights
from .folders import MAX_NAME_BYTES
from .images.vae import encode_pixels, latent_cell
from .model.denoiser import prediction_of
from .model.layers import architecture, layer_shapes, trainable_layers
from .text.conditioning import encode_prompt
from .training_session import training_session

BANK_FOLDER = "hyperbooth_banks"
"""Folder in ComfyUI's models and output."""
MOST_PROMPTS = 256
"""Whose conditioning is kept while a bank is built: common captions are encoded once."""
SAMPLED = 64
"""Layers of a model, and weights of a VAE, that a bank's manifest knows some numbers of."""


def register_bank_folders() -> None:
    """ComfyUI knows ``models/hyperbooth_banks``, also as a name in extra_model_paths.yaml."""
    folder_paths.add_model_folder_path(BANK_FOLDER, str(Path(folder_paths.models_dir) / BANK_FOLDER))


def bank_names() -> list[str]:
    """The banks there are."""
    found = {path.parent.name for root in _roots() for path in root.glob(f"*/{MANIFEST}")}
    return sorted(found)


def bank_path(name: str) -> Path:
    """The folder of the bank of that name; one of the output folder comes first.

    Raises:
        ValueError: there is none.
    """
    found = (root / name for root in _roots())
    path = next((path for path in found if name in bank_names() and (path / MANIFEST).is_file()), None)
    if path is None:
        folders = ", ".join(map(str, _roots()))
        raise ValueError(f"bank_name {name!r:.80} is in none of {folders}; press R to refresh the list")
    return path


def new_bank_path(name: str) -> Path:
    """Where a bank of that name is built.

    Raises:
        ValueError: the name is no folder's, or one of another folder of banks, which a new one would hide.
    """
    name = name.strip()
    plain = name.isprintable() and Path(name).name == name and not {"/", "\\", ":"} & set(name)
    if not name or not plain or name.startswith(".") or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"bank_name {name[:60]!r} is no folder's name; give one such as 'people'")
    place = _output() / name
    for root in _roots():
        if (root / name / MANIFEST).exists() and not (place / MANIFEST).exists():
            raise ValueError(
                f"bank_name {name!r} is in {root} already; give another name, or move that one to {_output()}, where "
                "banks are extended"
            )
    return place


def default_bank_name(source: Path) -> str:
    """A bank's name where none is given: that of the folder of pictures, with those that it lies in."""
    return "_".join(source.relative_to(Path(folder_paths.get_input_directory()).resolve()).parts)


_seen: dict[Path, tuple[list[Any], int]] = {}


def folder_version(folder: Path) -> int:
    """How often this process has found the bank in ``folder`` other than it left it: a shard gone, or new ones."""
    now = folder_state(folder)
    before, count = _seen.get(folder, (now, 0))
    _seen[folder] = now, count + (before != now)
    return _seen[folder][1]


def accept_folder_state(folder: Path) -> None:
    """What this process has done to the bank in ``folder`` is no change."""
    _seen[folder] = folder_state(folder), _seen.get(folder, ([], 0))[1]


def bank_builder(model: Any, clip: Any, vae: Any, options: TrainingOptions, text_encoder: bool) -> BankBuilder:
    """What a bank needs of the loaded model; ``text_encoder``: it trains as well."""
    trained = clip if text_encoder else None
    return BankBuilder(
        tools=Encoders(
            encode_image=lambda pixels: encode_pixels(vae, pixels),
            encode_prompt=lru_cache(maxsize=MOST_PROMPTS)(lambda prompt: encode_prompt(clip, prompt)),
            latent_cell=latent_cell(vae),
            on_progress=lambda *_: None,
        ),
        session=lambda subject, batch_size: training_session(
            model, options, subject, batch_size=batch_size, clip=trained
        ),
        shapes=layer_shapes(trainable_layers(model, trained)),
        base=base_model_record(model, clip, vae),
        versions={"comfyui": comfyui_version.__version__, "torch": str(torch.__version__)},
    )


def base_model_record(model: Any, clip: Any, vae: Any = None) -> dict[str, Any]:
    """What a bank, or whatever is made from one, is for: as facts of adapters say it, and a sample of the weights of
    model, text encoder and (if given) VAE."""
    layers = sorted(trainable_layers(model, clip))
    sample = dict(fingerprint(layers, base_weights(model, clip), SAMPLED))
    if vae is not None:
        numbers = {f"vae.{name}": value for name, value in vae.first_stage_model.state_dict().items() if value.ndim > 1}
        sample |= fingerprint(sorted(numbers), lambda name: numbers[name].float().cpu(), SAMPLED)
    return {
        "base": architecture(model),
        "prediction": prediction_of(model.get_model_object("model_sampling")).value,
        "latent_cell": model.model.latent_format.spacial_downscale_ratio,
        "weights": sample,
    }


def _roots() -> list[Path]:
    """The output folder's banks first, then the models'."""
    register_bank_folders()
    return [_output(), *map(Path, folder_paths.get_folder_paths(BANK_FOLDER))]


def _output() -> Path:
    return Path(folder_paths.get_output_directory()) / BANK_FOLDER
