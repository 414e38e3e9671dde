"""Make untrained autoencoders."""

from typing import Any

import torch
from torch import Tensor, nn

from .diffusion_models import fill

SD15_SCALE = 0.18215
CLAMPED = 0.5
"""Range of the decoder's input, small because it begins with a soft clamp at 3."""


def thumbnail_vae(channels: int = 4, scale: float = SD15_SCALE, shift: float = 0.0) -> dict[str, Tensor]:
    """Return the state dict of a TAESD autoencoder (2.4 M parameters) whose latents are the image, 8 times smaller.

    Nothing is trained: strided convolutions average 2 x 2 pixels, residual branches are zero, and three channels
    carry red, green and blue; the others are 0. In model space a latent is ``4 (rgb - 1/2)``, about as wide as a
    real one's.

    Args:
        channels: channels of the latent: 4 for U-Nets, 16 for SD3 and Flux.
        scale: scale of the latent format; model space is ``scale (latent - shift)``.
        shift: shift of the latent format.
    """
    from comfy.taesd.taesd import TAESD

    vae = TAESD(latent_channels=channels)
    convolutions = {name: module for name, module in vae.named_modules() if isinstance(module, nn.Conv2d)}
    with torch.no_grad():
        for tensor in vae.parameters():
            tensor.zero_()
        vae.vae_scale.fill_(CLAMPED * scale / 4)
        vae.vae_shift.fill_(shift)
        for name, convolution in convolutions.items():
            if ".conv." not in name:
                _pass_colors(convolution)
        _affine(vae.taesd_encoder[-1], CLAMPED, -CLAMPED / 2)
        _affine(vae.taesd_decoder[1], 1 / CLAMPED, 0.5)
    return vae.state_dict()


def _pass_colors(convolution: nn.Conv2d) -> None:
    """Pass three channels: unchanged, or averaged over 2 x 2 pixels if the stride is 2."""
    taps = slice(1, 3) if convolution.stride == (2, 2) else slice(1, 2)
    for color in range(3):
        kernel = convolution.weight[color, color]
        kernel[taps, taps] = 1 / kernel[taps, taps].numel()


def _affine(convolution: nn.Conv2d, scale: float, shift: float) -> None:
    """Compose the convolution with ``scale * color + shift`` in each of the three channels."""
    convolution.weight.mul_(scale)
    convolution.bias[:3] = shift


SD15_VAE: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def sd15_vae(seed: int = 4) -> dict[str, Tensor]:
    """Return the state dict of an autoencoder of SD1.5's size (84 M parameters), random, to measure encoding."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    return fill(AutoencoderKL(ddconfig=SD15_VAE, embed_dim=4), seed).state_dict()
