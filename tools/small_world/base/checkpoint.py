"""Store the world's weights in the repository, and write them as a checkpoint for the stock *Load Checkpoint*."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..weight_files import halved, read, write
from .autoencoder import Autoencoder, shipped, widened
from .family import CONTEXT
from .network import Base
from .tokenizer import CaptionTokenizer, initial_vectors

WEIGHTS = Path(__file__).parent / "weights.safetensors"
"""The trained weights in half precision; vectors of tokens that occur in no caption are drawn from their seed."""
TABLE = "embeddings.token_embedding.weight"


def pack(autoencoder: Autoencoder, base: Base, path: Path = WEIGHTS) -> None:
    """Write the trained weights."""
    tensors = {f"vae.{name}": tensor for name, tensor in shipped(autoencoder).items()} | base.state_dict()
    write(halved(tensors), path)


def checkpoint(path: Path, weights: Path = WEIGHTS) -> Path:
    """Write the checkpoint to `path` in half precision, unless it exists; requires ComfyUI."""
    if not path.exists():
        tensors = _unpacked(read(weights))
        path.parent.mkdir(parents=True, exist_ok=True)
        write(halved(tensors), path)
    return path


def _unpacked(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t.float() for name, t in weights.items() if name.startswith(prefix)}

    vectors = initial_vectors(CONTEXT)
    vectors[torch.tensor(CaptionTokenizer().known)] = weights["rows"].float()
    text = part("text.") | {TABLE: vectors}
    return (
        {f"model.diffusion_model.{name}": tensor for name, tensor in part("unet.").items()}
        | {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()}
        | {f"first_stage_model.{name}": tensor for name, tensor in widened(part("vae.")).items()}
    )
