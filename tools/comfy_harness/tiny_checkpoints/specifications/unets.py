"""Specifications of the U-Nets of Stable Diffusion 1, 2 and XL, and of Stable Cascade.

ComfyUI recognizes them by width, text width and number of transformer blocks. All are reduced to two resolutions, 32
and 64 channels wide, with a transformer block in each.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..diffusion_models import SD2_SMALL, SD15_SMALL, SDXL_SMALL
from .specification import Specification, Tensors, text_of, tokens

NETWORK = "comfy.ldm.modules.diffusionmodules.openaimodel:UNetModel"

NARROW: Mapping[str, Any] = {
    "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": [1, 1], "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1, "context_dim": 64,
}  # fmt: skip
NARROW_SD15: Mapping[str, Any] = {**NARROW, "num_heads": 2}
NARROW_SD2: Mapping[str, Any] = {**NARROW, "num_head_channels": 16}
NARROW_SDXL: Mapping[str, Any] = {
    **NARROW_SD2, "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2], "transformer_depth_middle": 2,
}  # fmt: skip

SD2: Mapping[str, Any] = SD2_SMALL
LOTUS: Mapping[str, Any] = {**SD2, "num_classes": "sequential", "adm_in_channels": 4}
X4: Mapping[str, Any] = {
    **SD2, "model_channels": 256, "in_channels": 7, "num_classes": 1000, "num_heads": 8, "num_head_channels": -1,
    "disable_self_attentions": [True, True, True, False],
}  # fmt: skip
SDXL_LEVELS: Mapping[str, Any] = {**SDXL_SMALL, "transformer_depth_middle": 1}


def _xl(depth: list[int], **values: Any) -> Mapping[str, Any]:
    """Return an SDXL whose transformers have ``depth`` blocks at each step down."""
    per_level = len(depth) // 3
    output = [depth[level * per_level] for level in range(3) for _ in range(per_level + 1)]
    return {
        **SDXL_LEVELS, "num_res_blocks": [per_level] * 3, "transformer_depth": depth,
        "transformer_depth_output": output, **values,
    }  # fmt: skip


SDXL: Mapping[str, Any] = _xl([0, 0, 2, 2, 10, 10])
REFINER: Mapping[str, Any] = {
    **SDXL_LEVELS, "model_channels": 384, "context_dim": 1280, "adm_in_channels": 2560, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 1, 1, 1), "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
    "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
}  # fmt: skip

CASCADE_C: Mapping[str, Any] = {"c_cond": 1536, "c_hidden": [1536, 1536], "nhead": [24, 24], "blocks": [[1, 1], [1, 1]]}
NARROW_CASCADE_C: Mapping[str, Any] = {
    "c_r": 16, "c_cond": 64, "c_hidden": [64, 64], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]],
    "block_repeat": [[1, 1], [1, 1]], "c_clip_text": 64, "c_clip_text_pooled": 64, "c_clip_img": 768,
}  # fmt: skip
CASCADE_B: Mapping[str, Any] = {
    "c_hidden": [320, 576, 1152, 1152], "nhead": [-1, 9, 18, 18], "blocks": [[1, 1, 1, 1], [1, 1, 1, 1]],
    "block_repeat": [[1, 1, 1, 1], [1, 1, 1, 1]],
}  # fmt: skip
NARROW_CASCADE_B: Mapping[str, Any] = {
    "c_r": 16, "c_cond": 64, "c_hidden": [32, 64], "nhead": [-1, 2], "blocks": [[1, 1], [1, 1]],
    "block_repeat": [[1, 1], [1, 1]], "level_config": ["CT", "CTA"], "c_clip": 64,
}  # fmt: skip


def _image(channels: int) -> Any:
    return lambda _count: tokens(64, channels, 1).movedim(1, -1).reshape(1, channels, 8, 8)


def _projection() -> Tensors:
    return {"cc_projection.weight": torch.eye(64, 68), "cc_projection.bias": torch.zeros(64)}


def _uneven_bias() -> Tensors:
    """Return the bias by which ComfyUI recognizes a v model among the SD2s; the small networks lack its layer."""
    return {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.linspace(-1, 1, 320)}


def _unet(name: str, architecture: str, config: Mapping[str, Any], reduced: Mapping[str, Any], **values: Any) -> Any:
    defaults: dict[str, Any] = {"latent": (4, 8, 8), "text": text_of(64), "prediction": "eps"}
    return Specification(
        name=name, architecture=architecture, network=NETWORK, config=config, reduced=reduced, **defaults | values
    )


_POOLED = text_of(64, pooled=1280)

UNETS = (
    _unet("sd15", "SD15", SD15_SMALL, NARROW_SD15),
    _unet("sd15_inpaint", "SD15", {**SD15_SMALL, "in_channels": 9}, NARROW_SD15),
    _unet("sd15_instructpix2pix", "SD15_instructpix2pix", {**SD15_SMALL, "in_channels": 8}, NARROW_SD15,
          text=text_of(64, concat_latent_image=_image(4))),
    _unet("zero123", "Stable_Zero123", {**SD15_SMALL, "in_channels": 8}, NARROW_SD15, extra=_projection,
          text=text_of(68, concat_latent_image=_image(4))),
    _unet("sd20", "SD20", SD2, NARROW_SD2),
    _unet("sd21_v", "SD20", SD2, NARROW_SD2, prediction="v", extra=_uneven_bias),
    _unet("sd21_unclip_l", "SD21UnclipL", {**SD2, "num_classes": "sequential", "adm_in_channels": 1536}, NARROW_SD2,
          prediction="v", extra=_uneven_bias),
    _unet("sd21_unclip_h", "SD21UnclipH", {**SD2, "num_classes": "sequential", "adm_in_channels": 2048}, NARROW_SD2,
          prediction="v", extra=_uneven_bias),
    _unet("sd_x4_upscaler", "SD_X4Upscaler", X4, {**NARROW, "num_heads": 2, "disable_self_attentions": [True, False]},
          prediction="v"),
    _unet("lotus", "LotusD", LOTUS, NARROW_SD2, prediction="img_to_img"),
    _unet("sdxl", "SDXL", SDXL, NARROW_SDXL, text=_POOLED),
    _unet("sdxl_v", "SDXL", SDXL, NARROW_SDXL, text=_POOLED, prediction="v", extra=lambda: {"v_pred": torch.zeros(0)}),
    _unet("sdxl_zsnr", "SDXL", SDXL, NARROW_SDXL, text=_POOLED, prediction="v",
          extra=lambda: {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}),
    _unet("cosxl", "SDXL", SDXL, NARROW_SDXL, text=_POOLED, prediction="v",
          extra=lambda: {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}),
    _unet("playground25", "SDXL", SDXL, NARROW_SDXL, text=_POOLED, prediction="edm",
          extra=lambda: {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}),
    _unet("sdxl_instructpix2pix", "SDXL_instructpix2pix", {**SDXL, "in_channels": 8}, NARROW_SDXL,
          text=text_of(64, pooled=1280, concat_latent_image=_image(4))),
    _unet("sdxl_refiner", "SDXLRefiner", REFINER, NARROW_SDXL, text=_POOLED),
    _unet("ssd_1b", "SSD1B", _xl([0, 0, 2, 2, 4, 4]), NARROW_SDXL, text=_POOLED),
    _unet("segmind_vega", "Segmind_Vega", _xl([0, 0, 1, 1, 2, 2]), NARROW_SDXL, text=_POOLED),
    _unet("koala_700m", "KOALA_700M", _xl([0, 2, 5], transformer_depth_middle=-2),
          {**NARROW_SDXL, "transformer_depth_middle": -2}, text=_POOLED),
    _unet("koala_1b", "KOALA_1B", _xl([0, 2, 6]), NARROW_SDXL, text=_POOLED),
    Specification(
        name="cascade_c", architecture="Stable_Cascade_C", network="comfy.ldm.cascade.stage_c:StageC",
        config=CASCADE_C, reduced=NARROW_CASCADE_C, latent=(16, 8, 8), text=text_of(64, pooled=64),
        prediction="eps",
    ),
    Specification(
        name="cascade_b", architecture="Stable_Cascade_B", network="comfy.ldm.cascade.stage_b:StageB",
        config=CASCADE_B, reduced=NARROW_CASCADE_B, latent=(4, 12, 12), text=text_of(64, pooled=64),
        prediction="eps",
    ),
)  # fmt: skip
