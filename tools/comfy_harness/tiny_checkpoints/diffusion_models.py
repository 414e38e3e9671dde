"""Make diffusion models of each family with random weights, of the smallest size that ComfyUI recognizes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SD15_SMALL: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1],
    "channel_mult": (1,), "transformer_depth": [1], "transformer_depth_output": [1, 1], "transformer_depth_middle": 1,
    "num_heads": 8, "use_spatial_transformer": True, "context_dim": 768, "use_checkpoint": False, "legacy": False,
    "num_head_channels": -1, "use_linear_in_transformer": False, "adm_in_channels": None,
}  # fmt: skip
"""The smallest U-Net that ComfyUI recognizes as SD1.5: one resolution, 25.8 M parameters."""

SD15_FULL: dict[str, Any] = {
    **SD15_SMALL, "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 2, 4, 4),
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip
"""SD1.5's own U-Net, 860 M parameters."""

SD2_SMALL: dict[str, Any] = {
    **SD15_SMALL, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True, "context_dim": 1024,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 1, 1, 1), "transformer_depth": [1, *[0] * 7],
    "transformer_depth_output": [1, *[0] * 11], "transformer_depth_middle": -1,
}  # fmt: skip
"""SD2 with as many blocks as ComfyUI's test for a v model needs (it reads `output_blocks.11`), all resolutions as
narrow as the first."""

SDXL_SMALL: dict[str, Any] = {
    **SD2_SMALL, "context_dim": 2048, "num_classes": "sequential", "adm_in_channels": 2816,
    "num_res_blocks": [2, 2, 2], "channel_mult": (1, 1, 1), "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 0, 0, 1, 0, 0, 1],
}  # fmt: skip
"""SDXL by the transformer depths of Segmind Vega, all resolutions as narrow as the first."""

SD3_SMALL: dict[str, Any] = {
    "depth": 2, "patch_size": 2, "in_channels": 16, "out_channels": 16, "adm_in_channels": 2048, "input_size": None,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    "num_patches": 96 * 96, "pos_embed_max_size": 96, "qk_norm": "rms", "x_block_self_attn_layers": [0],
}  # fmt: skip
"""SD3.5 medium's layout: width 64 per block, so two blocks of 128; the position table has half the real side length,
which is still more than a session copies."""

FLUX_SMALL: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 128, "hidden_size": 256,
    "mlp_ratio": 4.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
"""Flux [dev]'s layout: two heads of 128, one double block, one single block."""

FLUX2_SMALL: dict[str, Any] = {
    **FLUX_SMALL, "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0,
    "axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3],
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index",
    "ref_index_scale": 10.0,
}  # fmt: skip

PIXART_SMALL: dict[str, Any] = {
    "depth": 1, "patch_size": 2, "hidden_size": 1152, "num_heads": 16, "in_channels": 4, "model_max_length": 300,
    "micro_condition": False,
}  # fmt: skip
"""PixArt's width is fixed: one block of it, 37 M parameters."""


def fill(network: nn.Module, seed: int) -> nn.Module:
    """Fill a network with random weights that keep activations near 1; norms are identities."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if tensor.ndim > 1:
                fan_in = tensor[0].numel() if "embedding" not in name else 2500
                tensor.normal_(0, fan_in**-0.5, generator=generator)
            elif tensor.ndim == 1:
                tensor.fill_(1.0 if name.endswith("weight") else 0.0)
        for tensor in network.buffers():
            tensor.normal_(0, 0.5, generator=generator)
    return network


def sd15_unet(config: dict[str, Any] = SD15_SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of a U-Net, without prefix."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return _filled(UNetModel, config, seed)


def sd2_unet(seed: int = 0) -> dict[str, Tensor]:
    """Return SD2's U-Net, 75 M parameters; one bias is uneven, by which ComfyUI recognizes a v model."""
    tensors = sd15_unet(SD2_SMALL, seed)
    bias = tensors["output_blocks.11.1.transformer_blocks.0.norm1.bias"]
    bias.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return tensors


def sdxl_unet(seed: int = 0) -> dict[str, Tensor]:
    """Return SDXL's U-Net, 84 M parameters."""
    return sd15_unet(SDXL_SMALL, seed)


def sd3_mmdit(config: dict[str, Any] = SD3_SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Return SD3.5's MMDiT, 2.0 M parameters, with the norms of queries and keys and one second self-attention."""
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    return _filled(OpenAISignatureMMDITWrapper, config, seed)


def flux_dit(config: dict[str, Any] = FLUX_SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Return Flux's DiT, 4.1 M parameters; norms are called ``scale``, as in the published files."""
    from comfy.ldm.flux.model import Flux

    tensors = _filled(Flux, config, seed)
    return {name.replace("_norm.weight", "_norm.scale"): tensor for name, tensor in tensors.items()}


def flux2_dit(config: dict[str, Any] = FLUX2_SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Return Flux.2's DiT: 128 channels, one modulation for all blocks."""
    return flux_dit(config, seed)


def pixart_dit(config: dict[str, Any] = PIXART_SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Return PixArt Sigma's DiT, an eps model that also outputs variances, which ComfyUI drops."""
    from comfy.ldm.pixart.pixartms import PixArtMS

    positions = torch.zeros(1, 32 * 32, config["hidden_size"])  # read only for its size, 512 pixels
    return {**_filled(PixArtMS, config, seed), "pos_embed": positions}


def _filled(network: Callable[..., nn.Module], config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    import comfy.ops

    config = {key: list(value) if isinstance(value, list) else value for key, value in config.items()}
    return fill(network(**config, operations=comfy.ops.disable_weight_init), seed).state_dict()
