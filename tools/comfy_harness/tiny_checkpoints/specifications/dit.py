"""Specifications of the other diffusion transformers.

ComfyUI fixes the sizes of all of them but SD3, whose blocks number as many as its width has 64s. So the others are
reduced: PixArt (always 1152 wide), AuraFlow (3072), Hunyuan-DiT, HiDream, OmniGen 2, Boogu, Ernie, PixelDiT.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..diffusion_models import PIXART_SMALL, SD3_SMALL
from .specification import Specification, shown, text_of, tokens

PIXART: Mapping[str, Any] = {**PIXART_SMALL, "depth": 2}
NARROW_PIXART: Mapping[str, Any] = {"hidden_size": 96, "num_heads": 2, "caption_channels": 64}

SD3: Mapping[str, Any] = {
    **SD3_SMALL, "num_patches": 16 * 16, "pos_embed_max_size": 16,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
}  # fmt: skip

AURA: Mapping[str, Any] = {"n_layers": 3, "n_double_layers": 1, "max_seq": 16 * 16}
NARROW_AURA: Mapping[str, Any] = {"dim": 64, "n_heads": 2, "global_conddim": 64, "cond_seq_dim": 64}

HYDIT: Mapping[str, Any] = {"hidden_size": 1408, "depth": 4}
"""Of four blocks, the last takes the output of the first, as the published networks' second halves do."""
HYDIT1: Mapping[str, Any] = {**HYDIT, "size_cond": True, "use_style_cond": True}
NARROW_HYDIT: Mapping[str, Any] = {
    "hidden_size": 64, "num_heads": 2, "text_states_dim": 32, "text_states_dim_t5": 64, "text_len": 4,
    "text_len_t5": 4,
}  # fmt: skip

HIDREAM: Mapping[str, Any] = {
    "num_layers": 1, "num_single_layers": 1, "patch_size": 2, "in_channels": 16, "out_channels": 16,
    "caption_channels": [4096, 4096], "axes_dims_rope": [64, 32, 32], "llama_layers": [0, 1],
}  # fmt: skip
NARROW_HIDREAM: Mapping[str, Any] = {
    "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2,
    "axes_dims_rope": [16, 8, 8], "caption_channels": [32, 48], "llama_layers": [0, 1], "text_emb_dim": 32,
}  # fmt: skip

O1_TOKENS = 151674
"""HiDream-O1's vocabulary up to its last special token: 4.9 M parameters of a network 32 wide."""
NARROW_O1: Mapping[str, Any] = {
    "text_config_overrides": {
        "vocab_size": O1_TOKENS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "rope_dims": [6, 5, 5],
    },
    "vision_config_overrides": {
        "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "depth": 1, "num_position_embeddings": 16,
    },
}  # fmt: skip

OMNIGEN2: Mapping[str, Any] = {
    "hidden_size": 2520, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 21, "num_kv_heads": 7,
    "axes_dim_rope": [40, 40, 40], "text_feat_dim": 2048,
}  # fmt: skip
NARROW_OMNIGEN2: Mapping[str, Any] = {
    "hidden_size": 64, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1,
    "multiple_of": 64, "axes_dim_rope": [8, 12, 12],
}  # fmt: skip
BOOGU: Mapping[str, Any] = {"num_layers": 1, "num_double_stream_layers": 1, "num_refiner_layers": 1}

NARROW_ERNIE: Mapping[str, Any] = {
    "hidden_size": 64, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 128, "text_in_dim": 48,
    "rope_axes_dim": (8, 12, 12),
}  # fmt: skip

NARROW_PIXELDIT: Mapping[str, Any] = {
    "num_groups": 2, "hidden_size": 64, "pixel_hidden_size": 4, "pixel_attn_hidden_size": 64, "pixel_num_groups": 2,
    "patch_depth": 2, "pixel_depth": 1, "txt_embed_dim": 64, "txt_max_length": 32,
}  # fmt: skip


def _token_ids(count: int) -> Any:
    """Return a prompt for HiDream-O1, which reads tokens: any words, and the mark after which it draws."""
    from comfy.text_encoders.hidream_o1 import TMS_TOKEN_ID

    ids = torch.cat([torch.arange(count - 1), torch.tensor([TMS_TOKEN_ID])]).view(1, -1)
    return [[ids.unsqueeze(-1).float(), {"pooled_output": None, "text_input_ids": ids}]]


def _core(name: str) -> str:
    return f"core.{name}"


_hydit_text = text_of(
    32, mask=True, conditioning_mt5xl=lambda count: tokens(count, 64, 2), attention_mask_mt5xl=shown
)  # fmt: skip

DIT = (
    Specification(
        name="sd3_medium", architecture="SD3", network="comfy.ldm.modules.diffusionmodules.mmdit:"
        "OpenAISignatureMMDITWrapper", config={**SD3, "qk_norm": None, "x_block_self_attn_layers": []},
        latent=(16, 8, 8), text=text_of(64, pooled=2048), prediction="flow",
    ),
    Specification(
        name="sd35_medium", architecture="SD3", config=SD3,
        network="comfy.ldm.modules.diffusionmodules.mmdit:OpenAISignatureMMDITWrapper",
        latent=(16, 8, 8), text=text_of(64, pooled=2048), prediction="flow",
    ),
    Specification(
        name="pixart_alpha", architecture="PixArtAlpha", network="comfy.ldm.pixart.pixartms:PixArtMS",
        config={**PIXART, "micro_condition": True, "model_max_length": 120}, reduced=NARROW_PIXART,
        latent=(4, 36, 36), text=text_of(64), prediction="eps", on_meta=False,
    ),
    Specification(
        name="pixart_sigma", architecture="PixArtSigma", network="comfy.ldm.pixart.pixartms:PixArtMS", config=PIXART,
        reduced=NARROW_PIXART, latent=(4, 36, 36), text=text_of(64), prediction="eps", on_meta=False,
    ),
    Specification(
        name="auraflow", architecture="AuraFlow", network="comfy.ldm.aura.mmdit:MMDiT", config=AURA,
        reduced=NARROW_AURA, latent=(4, 8, 8), text=text_of(64), prediction="flow",
    ),
    Specification(
        name="hunyuan_dit", architecture="HunyuanDiT", network="comfy.ldm.hydit.models:HunYuanDiT", config=HYDIT,
        reduced=NARROW_HYDIT, latent=(4, 8, 8), text=_hydit_text, prediction="v",
    ),
    Specification(
        name="hunyuan_dit1", architecture="HunyuanDiT1", network="comfy.ldm.hydit.models:HunYuanDiT", config=HYDIT1,
        reduced=NARROW_HYDIT, latent=(4, 8, 8), text=_hydit_text, prediction="v",
    ),
    Specification(
        name="hidream", architecture="HiDream", network="comfy.ldm.hidream.model:HiDreamImageTransformer2DModel",
        config=HIDREAM, reduced=NARROW_HIDREAM, latent=(16, 8, 8), prediction="flow",
        text=text_of(32, pooled=32, conditioning_llama3=lambda count: tokens(2 * count, 48, 2).view(1, 2, count, 48)),
    ),
    Specification(
        name="hidream_o1", architecture="HiDreamO1", network="comfy.ldm.hidream_o1.model:HiDreamO1Transformer",
        config={"text_config_overrides": {"num_hidden_layers": 1}, "vision_config_overrides": {"depth": 1}},
        reduced=NARROW_O1, latent=(3, 64, 64), text=_token_ids, prediction="flow",
    ),
    Specification(
        name="omnigen2", architecture="Omnigen2", network="comfy.ldm.omnigen.omnigen2:OmniGen2Transformer2DModel",
        config=OMNIGEN2, reduced={**NARROW_OMNIGEN2, "text_feat_dim": 64},
        latent=(16, 8, 8), text=text_of(64), prediction="flow",
    ),
    Specification(
        name="boogu", architecture="Boogu", network="comfy.ldm.boogu.model:BooguTransformer2DModel", config=BOOGU,
        reduced={**NARROW_OMNIGEN2, "num_layers": 1, "instruction_feat_dim": 64},
        latent=(16, 8, 8), text=text_of(64), prediction="flow",
    ),
    Specification(
        name="ernie_image", architecture="ErnieImage", network="comfy.ldm.ernie.model:ErnieImageModel",
        config={"num_layers": 1}, reduced=NARROW_ERNIE,
        latent=(128, 4, 4), text=text_of(48, mask=True), prediction="flow",
    ),
    Specification(
        name="pixeldit", architecture="PixelDiTT2I", network="comfy.ldm.pixeldit.model:PixDiT_T2I",
        config={"patch_depth": 1, "pixel_depth": 1}, reduced=NARROW_PIXELDIT, published_names=_core,
        latent=(3, 32, 32), text=text_of(64, mask=True), prediction="flow",
    ),
)  # fmt: skip
