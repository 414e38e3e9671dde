"""Small checkpoints in the real layouts, with random weights, made on the spot."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SD15_SMALL: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1],
    "channel_mult": (1,), "transformer_depth": [1], "transformer_depth_output": [1, 1], "transformer_depth_middle": 1,
    "num_heads": 8, "use_spatial_transformer": True, "context_dim": 768, "use_checkpoint": False, "legacy": False,
    "num_head_channels": -1, "use_linear_in_transformer": False, "adm_in_channels": None,
}  # fmt: skip
"""The smallest U-Net that ComfyUI recognises as SD1.5: one level, 25.8 M parameters."""

SD15_FULL: dict[str, Any] = {
    **SD15_SMALL, "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 2, 4, 4),
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip
"""SD1.5's own U-Net, 860 M parameters."""


def fill(network: nn.Module, seed: int) -> nn.Module:
    """Random weights of a scale that keeps activations near 1; norms are identities."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if tensor.ndim > 1:
                fan_in = tensor[0].numel() if "embedding" not in name else 2500
                tensor.normal_(0, fan_in**-0.5, generator=generator)
            elif tensor.ndim == 1:
                tensor.fill_(1.0 if name.endswith("weight") else 0.0)
    return network


def sd15_unet(config: dict[str, Any] = SD15_SMALL, seed: int = 0) -> dict[str, Tensor]:
    """State dict of a U-Net of the SD1.5 family, without prefix."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = {key: list(value) if isinstance(value, list) else value for key, value in config.items()}
    return fill(UNetModel(**config), seed).state_dict()


def clip_l(seed: int = 1) -> dict[str, Tensor]:
    """State dict of SD1.5's text encoder (12 layers, 123 M parameters)."""
    from comfy.sd1_clip import SDClipModel

    return fill(SDClipModel(dtype=torch.float32).transformer, seed).state_dict()


def thumbnail_vae() -> dict[str, Tensor]:
    """State dict of a TAESD autoencoder (2.4 M parameters) whose latents are the picture, 8 times smaller.

    Nothing is trained: strided convolutions average 2 x 2 pixels, residual branches are zero, and three channels
    carry red, green and blue. In model space a latent is ``4 (rgb - 1/2)``, about as wide as SD1.5's.
    """
    from comfy.taesd.taesd import TAESD

    vae = TAESD()
    convolutions = {name: module for name, module in vae.named_modules() if isinstance(module, nn.Conv2d)}
    with torch.no_grad():
        for tensor in vae.parameters():
            tensor.zero_()
        vae.vae_scale.fill_(CLAMPED * SD15_SCALE / 4)
        for name, convolution in convolutions.items():
            if ".conv." not in name:
                _pass_colours(convolution)
        _affine(vae.taesd_encoder[-1], CLAMPED, -CLAMPED / 2)
        _affine(vae.taesd_decoder[1], 1 / CLAMPED, 0.5)
    return vae.state_dict()


SD15_SCALE = 0.18215
CLAMPED = 0.5
"""Range of the decoder's input, small because it begins with a soft clamp at 3."""


def _pass_colours(convolution: nn.Conv2d) -> None:
    """Three channels through: unchanged, or averaged over 2 x 2 pixels where the stride is 2."""
    taps = slice(1, 3) if convolution.stride == (2, 2) else slice(1, 2)
    for colour in range(3):
        kernel = convolution.weight[colour, colour]
        kernel[taps, taps] = 1 / kernel[taps, taps].numel()


def _affine(convolution: nn.Conv2d, scale: float, shift: float) -> None:
    """``scale * colour + shift`` in each of the three channels."""
    convolution.weight.mul_(scale)
    convolution.bias[:3] = shift


def write_sd15(path: Path, config: dict[str, Any] = SD15_SMALL, dtype: torch.dtype = torch.float16) -> Path:
    """A whole checkpoint for the stock Load Checkpoint; kept if it is there already."""
    if path.exists():
        return path
    parts = {
        "model.diffusion_model.": sd15_unet(config),
        "cond_stage_model.transformer.": clip_l(),
        "first_stage_model.": thumbnail_vae(),
    }
    tensors = {prefix + name: t.to(dtype).contiguous() for prefix, part in parts.items() for name, t in part.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary)
    temporary.replace(path)
    return path
