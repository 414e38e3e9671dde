"""Make text encoders with random weights; those of the larger families have few layers.

ComfyUI builds a text encoder from its own configuration, which a loader's ``te_model_options`` may change
(``clip_g_model_config`` and so on). :data:`FEW_LAYERS` does so; width, vocabulary and tokenizer stay the real ones.
"""

from typing import Any

import torch
from torch import Tensor

from .diffusion_models import fill

T5_WIDTH = 128
"""Instead of 4096; Flux's text input layer takes the width of its weight."""

FEW_LAYERS: dict[str, Any] = {
    "clip_l_model_config": {"num_hidden_layers": 3},
    "clip_g_model_config": {"num_hidden_layers": 3, "intermediate_size": 1280},
    "t5xxl_model_config": {"num_layers": 2, "d_model": T5_WIDTH, "d_ff": 256, "num_heads": 2},
}
"""Values for ``te_model_options``. CLIP has three layers because SDXL reads the last but one."""


def clip_l(seed: int = 1, options: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the state dict of CLIP-L: 12 layers and 123 M parameters, or 60 M with :data:`FEW_LAYERS`."""
    from comfy.sd1_clip import SDClipModel

    encoder = SDClipModel(dtype=torch.float32, model_options=options or {})
    return fill(encoder.transformer, seed).state_dict()


def clip_g(seed: int = 2) -> dict[str, Tensor]:
    """Return SDXL's second text encoder with few layers: 95 M parameters, two thirds of them the vocabulary."""
    from comfy.sdxl_clip import SDXLClipG

    return fill(SDXLClipG(dtype=torch.float32, model_options=FEW_LAYERS).transformer, seed).state_dict()


def clip_h(seed: int = 2) -> dict[str, Tensor]:
    """Return SD2's text encoder with few layers. ComfyUI loads it under CLIP-L's options."""
    from comfy.text_encoders.sd2_clip import SD2ClipHModel

    return fill(SD2ClipHModel(dtype=torch.float32, model_options=H_OPTIONS).transformer, seed).state_dict()


H_OPTIONS: dict[str, Any] = {"model_name": "clip_h", "clip_h_model_config": {"num_hidden_layers": 3}}


def t5(seed: int = 3) -> dict[str, Tensor]:
    """Return Flux's second text encoder, narrow and with few layers: 4.5 M parameters instead of 4.7 billion."""
    from comfy.text_encoders.sd3_clip import T5XXLModel

    return fill(T5XXLModel(dtype=torch.float32, model_options=FEW_LAYERS).transformer, seed).state_dict()
