"""Specifications of Qwen-Image, of networks built from its blocks, and of those that read a Qwen's hidden states.

Qwen-Image is always 3072 wide, with heads of 128; here it has two heads of 32. Krea 2, JoyImage and Lens take all sizes
from their tensors.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .specification import Specification, text_of, tokens

QWEN: Mapping[str, Any] = {"in_channels": 64, "num_layers": 2, "joint_attention_dim": 3584}
TWO_HEADS: Mapping[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}
NARROW_QWEN: Mapping[str, Any] = {**TWO_HEADS, "joint_attention_dim": 64}
QWEN_NETWORK = "comfy.ldm.qwen_image.model:QwenImageTransformer2DModel"

KREA2: Mapping[str, Any] = {
    "features": 256, "tdim": 256, "txtdim": 40, "heads": 2, "kvheads": 1, "layers": 2, "channels": 16, "txtlayers": 3,
}  # fmt: skip
"""Heads are 128 wide, and the text's are always 20."""

JOY: Mapping[str, Any] = {
    "patch_size": [1, 2, 2], "in_channels": 16, "hidden_size": 128, "num_attention_heads": 1, "text_dim": 4096,
    "num_layers": 2, "rope_dim_list": [16, 56, 56], "theta": 10000,
}  # fmt: skip
"""Heads are 128 wide, as the rotary positions are."""

LENS: Mapping[str, Any] = {
    "in_channels": 128, "out_channels": 32, "num_layers": 2, "num_attention_heads": 1, "enc_hidden_dim": 32,
    "multi_layer_encoder_feature": True, "selected_layer_index": (0, 1, 2, 3),
}  # fmt: skip

IDEOGRAM: Mapping[str, Any] = {"in_channels": 128, "num_layers": 2}
NARROW_IDEOGRAM: Mapping[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 32, "intermediate_size": 128, "adaln_dim": 32,
    "llm_features_dim": 64, "mrope_section": [6, 5, 5],
}  # fmt: skip


def _picture(_count: int) -> list[torch.Tensor]:
    return [tokens(64, 16, 1).movedim(1, -1).reshape(1, 16, 1, 8, 8)]


QWEN_LIKE = (
    Specification(
        name="qwen_image", architecture="QwenImage", network=QWEN_NETWORK, config=QWEN, reduced=NARROW_QWEN,
        latent=(16, 1, 8, 8), text=text_of(64, mask=True), prediction="flow",
    ),
    Specification(
        name="qwen_image_edit", architecture="QwenImage", network=QWEN_NETWORK, reduced=NARROW_QWEN,
        config={**QWEN, "default_ref_method": "index_timestep_zero"},
        extra=lambda: {"__index_timestep_zero__": torch.zeros(0)},
        latent=(16, 1, 8, 8), text=text_of(64, mask=True, reference_latents=_picture), prediction="flow",
    ),
    Specification(
        name="qwen_image_layered", architecture="QwenImage", network=QWEN_NETWORK, reduced=NARROW_QWEN,
        config={**QWEN, "use_additional_t_cond": True},
        latent=(16, 1, 8, 8), text=text_of(64, mask=True), prediction="flow",
    ),
    Specification(
        name="mage_flow", architecture="MageFlow", network="comfy.ldm.mage_flow.model:MageFlowTransformer2DModel",
        config={"num_layers": 2}, reduced=NARROW_QWEN,
        latent=(128, 4, 4), text=text_of(64, mask=True), prediction="flow",
    ),
    Specification(
        name="krea2", architecture="Krea2", network="comfy.ldm.krea2.model:SingleStreamDiT", config=KREA2,
        latent=(16, 1, 8, 8), text=text_of(3 * 40, mask=True), prediction="flow",
    ),
    Specification(
        name="joy_image", architecture="JoyImage", network="comfy.ldm.joyimage.model:JoyImageTransformer3DModel",
        config=JOY, reduced={"text_dim": 64}, latent=(16, 1, 8, 8), text=text_of(64, mask=True), prediction="flow",
    ),
    Specification(
        name="lens", architecture="Lens", network="comfy.ldm.lens.model:LensTransformer2DModel", config=LENS,
        latent=(128, 4, 4), text=text_of(4 * 32, mask=True), prediction="flow",
    ),
    Specification(
        name="ideogram4", architecture="Ideogram4", reduced=NARROW_IDEOGRAM, config=IDEOGRAM,
        network="comfy.ldm.ideogram4.model:Ideogram4Transformer2DModel",
        latent=(128, 4, 4), text=text_of(64, mask=True), prediction="flow",
    ),
)  # fmt: skip
