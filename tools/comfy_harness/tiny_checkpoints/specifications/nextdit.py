"""Specifications of the families on Lumina's NextDiT.

ComfyUI fixes the sizes of all of them: 2304 is Lumina 2, 3840 is Z-Image; other widths get heads that fit none. The
networks here have one refiner of each kind instead of two. Lumina's is 64 wide; a Z-Image is 256 wide, as its time
embedding always is.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .specification import Specification, text_of, tokens

NETWORK = "comfy.ldm.lumina.model:NextDiT"

LUMINA2: Mapping[str, Any] = {
    "patch_size": 2, "in_channels": 16, "dim": 2304, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 24,
    "n_kv_heads": 8, "axes_dims": [32, 32, 32], "cap_feat_dim": 64, "qk_norm": True,
}  # fmt: skip
Z_IMAGE: Mapping[str, Any] = {
    **LUMINA2, "dim": 3840, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "z_image_modulation": True,
    "pad_tokens_multiple": 32,
}  # fmt: skip
NARROW: Mapping[str, Any] = {
    "dim": 64, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1, "axes_dims": [8, 12, 12], "ffn_dim_multiplier": 1,
    "multiple_of": 64,
}  # fmt: skip
NARROW_Z: Mapping[str, Any] = {**NARROW, "dim": 256, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [16, 24, 24]}

NEXTDIT = (
    Specification(
        name="z_image", architecture="ZImage", network=NETWORK, config=Z_IMAGE, reduced=NARROW_Z,
        latent=(16, 8, 8), text=text_of(64, mask=True), prediction="flow",
    ),
    Specification(
        name="z_image_omni", architecture="ZImage", network=NETWORK, config={**Z_IMAGE, "siglip_feat_dim": 64},
        reduced=NARROW_Z, latent=(16, 8, 8), prediction="flow",
        text=text_of(64, reference_latents=lambda count: [tokens(64, 16, 1).movedim(1, -1).reshape(1, 16, 8, 8)]),
    ),
    Specification(
        name="z_image_pixel", architecture="ZImagePixelSpace", network="comfy.ldm.lumina.model:NextDiTPixelSpace",
        config={**Z_IMAGE, "in_channels": 3, "patch_size": 16, "decoder_hidden_size": 64,
                "decoder_num_res_blocks": 2, "use_x0": True},
        reduced=NARROW_Z, latent=(3, 32, 32), text=text_of(64, mask=True), prediction="flow",
        extra=lambda: {"__x0__": torch.zeros(0)},
    ),
    Specification(
        name="lumina2", architecture="Lumina2", network=NETWORK, config=LUMINA2, reduced=NARROW,
        latent=(16, 8, 8), text=text_of(64, mask=True), prediction="flow",
    ),
    Specification(
        name="newbie", architecture="Lumina2", network=NETWORK, config={**LUMINA2, "clip_text_dim": 32},
        reduced=NARROW, latent=(16, 8, 8), text=text_of(64, pooled=32, mask=True), prediction="flow",
    ),
)  # fmt: skip
"""NewBie is Lumina 2 with the pooled text of a CLIP; Z-Image Omni reads pictures too."""
