"""Define the world's model family for ComfyUI: Stable Diffusion's structure with a few million parameters.

:func:`register` adds it to ComfyUI; then the stock *Load Checkpoint* loads the world's checkpoint.
"""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base

from .autoencoder import CHANNELS

CONTEXT = 128
"""Width of the text encoder."""
TEXT = {
    "architectures": ["CLIPTextModel"], "hidden_size": CONTEXT, "intermediate_size": 2 * CONTEXT,
    "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 0, "pad_token_id": 1, "projection_dim": CONTEXT,
    "layer_norm_eps": 1e-05, "model_type": "clip_text_model", "num_channels": 3,
}  # fmt: skip
HEADS = {"num_heads": -1, "num_head_channels": 32}
UNET = {
    "image_size": 32, "use_spatial_transformer": True, "legacy": False, "use_checkpoint": False,
    "adm_in_channels": None, "in_channels": CHANNELS, "out_channels": CHANNELS, "model_channels": 64,
    "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 1], "transformer_depth_middle": 1,
    "use_linear_in_transformer": False, "context_dim": CONTEXT,
    "use_temporal_resblock": False, "use_temporal_attention": False,
}  # fmt: skip
"""The configuration that ComfyUI detects from the checkpoint; it cannot detect HEADS."""


class Latents(comfy.latent_formats.LatentFormat):
    """Define the latent format without scaling: the autoencoder's latents have variance 1."""

    latent_channels = CHANNELS


class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    """Tokenize as CLIP, for embeddings of the world's width."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        class Narrow(comfy.sd1_clip.SDTokenizer):
            def __init__(self, **options: Any) -> None:
                super().__init__(embedding_size=CONTEXT, **options)

        super().__init__(embedding_directory, tokenizer_data or {}, clip_name="l", tokenizer=Narrow)


class TextEncoder(comfy.sd1_clip.SDClipModel):
    """Encode text by CLIP's text model with two layers."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__(
            device=device, dtype=dtype, textmodel_json_config=dict(TEXT), return_projected_pooled=False,
            model_options=model_options or {},
        )  # fmt: skip


class Clip(comfy.sd1_clip.SD1ClipModel):
    """Define the model of the CLIP object."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__(device, dtype, model_options or {}, clip_name="l", clip_model=TextEncoder)


class Portraits(comfy.supported_models.SD15):
    """Define the model family of drawn portraits: prediction type, noise schedule and names in files are SD1.5's."""

    unet_config = {name: UNET[name] for name in ("context_dim", "model_channels", "in_channels", "channel_mult")}
    unet_extra_config = HEADS
    latent_format = Latents

    def inpaint_model(self) -> bool:
        return False

    def clip_target(self, state_dict: Any = None) -> comfy.supported_models_base.ClipTarget:
        return comfy.supported_models_base.ClipTarget(Tokenizer, Clip)


def register() -> None:
    """Register the family with ComfyUI; a second call changes nothing."""
    if Portraits not in comfy.supported_models.models:
        comfy.supported_models.models.append(Portraits)
