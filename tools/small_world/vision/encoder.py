"""Load the encoder as ComfyUI's CLIP_VISION from the repository's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..weight_files import halved, read, write

WEIGHTS = Path(__file__).parent / "weights.safetensors"
CONFIG: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 4,
    "num_hidden_layers": 4, "hidden_act": "gelu", "num_channels": 3, "image_size": 64, "patch_size": 8,
    "projection_dim": 64, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
}  # fmt: skip
"""Configuration in the format of CLIP's vision models."""


def keep(network: nn.Module, path: Path = WEIGHTS) -> None:
    """Save the encoder in half precision."""
    write(halved(network.state_dict()), path)


def kept(path: Path = WEIGHTS) -> Any:
    """Load CLIP_VISION; `encode_image` returns tokens [images, 65, 96] and embeddings [images, 64]."""
    from comfy.clip_vision import ClipVisionModel

    with torch.inference_mode():
        model = ClipVisionModel(dict(CONFIG))
        model.load_sd({name: tensor.to(model.dtype) for name, tensor in read(path).items()})
    return model
