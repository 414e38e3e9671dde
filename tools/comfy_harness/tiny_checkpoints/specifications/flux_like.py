"""Specifications of Flux, of its relatives, and of Chroma.

ComfyUI takes every size of a Flux from its tensors except the heads, which are 128 wide: these networks have one head,
one double block, and two single blocks. The published Flux.1 [schnell] differs from [dev] in nothing but the missing
guidance.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..diffusion_models import FLUX2_SMALL, FLUX_SMALL
from .specification import Specification, text_of

NETWORK = "comfy.ldm.flux.model:Flux"

FLUX: Mapping[str, Any] = {
    **FLUX_SMALL, "hidden_size": 128, "num_heads": 1, "context_in_dim": 64, "vec_in_dim": 64, "depth_single_blocks": 2,
}  # fmt: skip
SCHNELL: Mapping[str, Any] = {**FLUX, "guidance_embed": False}
LONGCAT: Mapping[str, Any] = {**SCHNELL, "context_in_dim": 3584, "vec_in_dim": None, "txt_ids_dims": [1, 2]}
"""The width of LongCat's text tells it from Flux.1 [schnell]."""
OVIS: Mapping[str, Any] = {
    **SCHNELL, "vec_in_dim": None, "txt_ids_dims": [1, 2], "yak_mlp": True, "txt_norm": True,
}  # fmt: skip
FLUX2: Mapping[str, Any] = {
    **FLUX2_SMALL, "hidden_size": 128, "num_heads": 1, "context_in_dim": 64, "depth_single_blocks": 2,
}  # fmt: skip

CHROMA: Mapping[str, Any] = {
    "in_channels": 64, "out_channels": 64, "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1,
    "depth": 1, "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5, "txt_ids_dims": [], "vec_in_dim": None,
}  # fmt: skip
RADIANCE: Mapping[str, Any] = {
    **CHROMA, "in_channels": 3, "out_channels": 3, "patch_size": 16, "nerf_hidden_size": 64, "nerf_mlp_ratio": 4,
    "nerf_depth": 4, "nerf_max_freqs": 8, "nerf_tile_size": 512, "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32, "use_x0": False, "use_sequential_txt_ids": False,
}  # fmt: skip
APPROXIMATOR: Mapping[str, Any] = {"out_dim": 128, "hidden_dim": 64, "n_layers": 2}
"""Chroma's network for modulations has fixed sizes: its output must be as wide as the blocks."""
NERF: Mapping[str, Any] = {**APPROXIMATOR, "nerf_hidden_size": 16, "nerf_depth": 2}


def _scales(name: str) -> str:
    return name.replace("_norm.weight", "_norm.scale")


FLUX_LIKE = (
    Specification(
        name="flux_dev", architecture="Flux", network=NETWORK, config=FLUX, published_names=_scales,
        latent=(16, 8, 8), text=text_of(64, pooled=64), prediction="flow",
    ),
    Specification(
        name="flux_schnell", architecture="FluxSchnell", network=NETWORK, config=SCHNELL, published_names=_scales,
        latent=(16, 8, 8), text=text_of(64, pooled=64), prediction="flow",
    ),
    Specification(
        name="flux_inpaint", architecture="FluxInpaint", network=NETWORK, config={**FLUX, "in_channels": 96},
        published_names=_scales, latent=(16, 8, 8), text=text_of(64, pooled=64), prediction="flow",
    ),
    Specification(
        name="flux_control", architecture="Flux", network=NETWORK, config={**FLUX, "in_channels": 32},
        published_names=_scales, latent=(16, 8, 8), text=text_of(64, pooled=64), prediction="flow",
    ),
    Specification(
        name="longcat_image", architecture="LongCatImage", network=NETWORK, config=LONGCAT,
        latent=(16, 8, 8), text=text_of(3584), prediction="flow",
    ),
    Specification(
        name="ovis_image", architecture="FluxSchnell", network=NETWORK, config=OVIS,
        latent=(16, 8, 8), text=text_of(64), prediction="flow",
    ),
    Specification(
        name="flux2_dev", architecture="Flux2", network=NETWORK, config=FLUX2,
        published_names=_scales, latent=(128, 4, 4), text=text_of(64), prediction="flow",
    ),
    Specification(
        name="flux2_klein", architecture="Flux2", network=NETWORK, config={**FLUX2, "guidance_embed": False},
        published_names=_scales, latent=(128, 4, 4), text=text_of(64), prediction="flow",
    ),
    Specification(
        name="chroma", architecture="Chroma", network="comfy.ldm.chroma.model:Chroma", config=CHROMA,
        reduced=APPROXIMATOR, published_names=_scales, latent=(16, 8, 8), text=text_of(64), prediction="flow",
    ),
    Specification(
        name="chroma_radiance", architecture="ChromaRadiance", config=RADIANCE, reduced=NERF,
        network="comfy.ldm.chroma_radiance.model:ChromaRadiance", latent=(3, 32, 32), text=text_of(64),
        prediction="flow",
    ),
)  # fmt: skip
