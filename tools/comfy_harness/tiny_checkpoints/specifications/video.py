"""Specifications of the families whose latents have a time axis, with one frame; and of the image models among them.

Wan, Hunyuan and CogVideoX take their sizes from their tensors, with heads 128 or 64 wide; Wan's text is always 4096
wide, and the pooled text of Hunyuan Video 768. ComfyUI fixes the sizes of the others, and of Hunyuan's layer for the
letters to draw.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .specification import Specification, text_of, tokens

WAN: Mapping[str, Any] = {"dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 2, "in_dim": 16, "out_dim": 16}

HUNYUAN: Mapping[str, Any] = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 64, "hidden_size": 128,
    "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 256,
    "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
HUNYUAN_IMAGE: Mapping[str, Any] = {
    **HUNYUAN, "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "axes_dim": [64, 64], "patch_size": [1, 1],
    "guidance_embed": False, "byt5": True,
}  # fmt: skip
HUNYUAN_REFINER: Mapping[str, Any] = {
    **HUNYUAN_IMAGE, "in_channels": 128, "axes_dim": [16, 56, 56], "patch_size": [1, 1, 1], "byt5": False,
    "meanflow": True,
}  # fmt: skip
HUNYUAN15: Mapping[str, Any] = {
    **HUNYUAN_REFINER, "in_channels": 65, "out_channels": 32, "byt5": True, "meanflow": False,
    "use_cond_type_embedding": True, "vision_in_dim": 1152, "meanflow_sum": True,
}  # fmt: skip
LETTERS: Mapping[str, Mapping[str, Any]] = {
    "comfy.ldm.hunyuan_video.model:ByT5Mapper": {"in_dim": 32, "out_dim": 32, "hidden_dim": 32}
}
HUNYUAN_NETWORK = "comfy.ldm.hunyuan_video.model:HunyuanVideo"

COSMOS: Mapping[str, Any] = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 2048, "num_blocks": 1, "num_heads": 16, "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
}  # fmt: skip
COSMOS1: Mapping[str, Any] = {
    **COSMOS, "model_channels": 4096, "num_heads": 32, "affline_emb_norm": True, "block_x_format": "THWBD",
    "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
NARROW_COSMOS: Mapping[str, Any] = {
    "model_channels": 64, "num_blocks": 2, "num_heads": 2, "adaln_lora_dim": 16, "crossattn_emb_channels": 64,
}  # fmt: skip
ADAPTER: Mapping[str, Mapping[str, Any]] = {
    "comfy.ldm.anima.model:LLMAdapter": {
        "source_dim": 64, "target_dim": 64, "model_dim": 64, "num_layers": 2, "num_heads": 2,
    }
}  # fmt: skip
"""Anima's own text encoder, whose vocabulary is the largest part of this network: 2.1 M parameters."""

KANDINSKY: Mapping[str, Any] = {
    "model_dim": 2560, "ff_dim": 128, "time_dim": 32, "visual_embed_dim": 64, "num_text_blocks": 1,
    "num_visual_blocks": 2, "axes_dims": (32, 48, 48),
}  # fmt: skip
KANDINSKY_VIDEO: Mapping[str, Any] = {
    **KANDINSKY, "model_dim": 1792, "visual_embed_dim": 132, "axes_dims": (16, 24, 24),
}  # fmt: skip
NARROW_KANDINSKY: Mapping[str, Any] = {
    "model_dim": 64, "axes_dims": (8, 12, 12), "in_text_dim": 64, "in_text_dim2": 32,
}  # fmt: skip

COGVIDEOX: Mapping[str, Any] = {
    "num_attention_heads": 1, "time_embed_dim": 64, "text_embed_dim": 64, "num_layers": 2,
    "use_rotary_positional_embeddings": True,
}  # fmt: skip

MOCHI: Mapping[str, Any] = {
    "in_channels": 12, "hidden_size_x": 3072, "hidden_size_y": 1536, "depth": 1, "num_heads": 24, "mlp_ratio_x": 4.0,
    "use_t5": True, "learn_sigma": False, "qk_norm": True,
}  # fmt: skip
NARROW_MOCHI: Mapping[str, Any] = {
    "hidden_size_x": 64, "hidden_size_y": 32, "depth": 2, "num_heads": 2, "t5_feat_dim": 64,
}  # fmt: skip


def _letters(count: int) -> torch.Tensor:
    return tokens(count, 32, 2)


VIDEO = (
    Specification(
        name="wan21", architecture="WAN21_T2V", network="comfy.ldm.wan.model:WanModel", config=WAN,
        latent=(16, 1, 8, 8), text=text_of(4096), prediction="flow",
    ),
    Specification(
        name="wan22", architecture="WAN22_T2V", network="comfy.ldm.wan.model:WanModel",
        config={**WAN, "in_dim": 48, "out_dim": 48}, latent=(48, 1, 8, 8), text=text_of(4096), prediction="flow",
    ),
    Specification(
        name="hunyuan_image21", architecture="HunyuanImage21", network=HUNYUAN_NETWORK, config=HUNYUAN_IMAGE,
        substitutes=LETTERS, latent=(64, 4, 4), prediction="flow",
        text=text_of(64, mask=True, conditioning_byt5small=_letters),
    ),
    Specification(
        name="hunyuan_image21_distilled", architecture="HunyuanImage21", network=HUNYUAN_NETWORK,
        config={**HUNYUAN_IMAGE, "guidance_embed": True, "meanflow": True}, substitutes=LETTERS, latent=(64, 4, 4),
        text=text_of(64, mask=True, conditioning_byt5small=_letters), prediction="flow",
    ),
    Specification(
        name="hunyuan_image21_refiner", architecture="HunyuanImage21Refiner", network=HUNYUAN_NETWORK,
        config=HUNYUAN_REFINER, latent=(64, 1, 4, 4), text=text_of(64, mask=True), prediction="flow",
    ),
    Specification(
        name="hunyuan_video", architecture="HunyuanVideo", network=HUNYUAN_NETWORK, config=HUNYUAN,
        latent=(16, 1, 8, 8), text=text_of(64, pooled=768, mask=True), prediction="flow",
    ),
    Specification(
        name="hunyuan_video15", architecture="HunyuanVideo15", network=HUNYUAN_NETWORK, config=HUNYUAN15,
        substitutes=LETTERS, latent=(32, 1, 4, 4), prediction="flow",
        text=text_of(64, mask=True, conditioning_byt5small=_letters),
    ),
    Specification(
        name="anima", architecture="Anima", network="comfy.ldm.anima.model:Anima", config=COSMOS,
        reduced=NARROW_COSMOS, substitutes=ADAPTER, latent=(16, 1, 8, 8), prediction="flow",
        text=text_of(64, t5xxl_ids=lambda count: torch.arange(count, dtype=torch.int), t5xxl_weights=torch.ones),
    ),
    Specification(
        name="cosmos_predict2", architecture="CosmosT2IPredict2", network="comfy.ldm.cosmos.predict2:MiniTrainDIT",
        config=COSMOS, reduced=NARROW_COSMOS, latent=(16, 1, 8, 8), text=text_of(64), prediction="cosmos_flow",
    ),
    Specification(
        name="cosmos1", architecture="CosmosT2V", network="comfy.ldm.cosmos.model:GeneralDIT", config=COSMOS1,
        reduced={**NARROW_COSMOS, "max_img_h": 32, "max_img_w": 32, "max_frames": 8},
        latent=(16, 1, 8, 8), text=text_of(64, mask=True), prediction="edm",
    ),
    Specification(
        name="kandinsky5_image", architecture="Kandinsky5Image", network="comfy.ldm.kandinsky5.model:Kandinsky5",
        config=KANDINSKY, reduced=NARROW_KANDINSKY, latent=(16, 8, 8), text=text_of(64, pooled=32, mask=True),
        prediction="flow",
    ),
    Specification(
        name="kandinsky5_video", architecture="Kandinsky5", network="comfy.ldm.kandinsky5.model:Kandinsky5",
        config=KANDINSKY_VIDEO, reduced=NARROW_KANDINSKY, latent=(16, 1, 8, 8),
        text=text_of(64, pooled=32, mask=True), prediction="flow",
    ),
    Specification(
        name="cogvideox", architecture="CogVideoX_T2V", config=COGVIDEOX,
        network="comfy.ldm.cogvideo.model:CogVideoXTransformer3DModel",
        latent=(16, 1, 8, 8), text=text_of(64), prediction="v_ddpm",
    ),
    Specification(
        name="ltxv", architecture="LTXV", network="comfy.ldm.lightricks.model:LTXVModel", config={"num_layers": 2},
        reduced={"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 64},
        latent=(128, 1, 4, 4), text=text_of(64, mask=True), prediction="flow",
    ),
    Specification(
        name="mochi", architecture="GenmoMochi", config=MOCHI, reduced=NARROW_MOCHI,
        network="comfy.ldm.genmo.joint_model.asymm_models_joint:AsymmDiTJoint",
        latent=(12, 1, 8, 8), text=text_of(64, mask=True), prediction="flow",
    ),
)  # fmt: skip
