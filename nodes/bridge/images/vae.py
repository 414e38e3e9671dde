"""Pictures through the VAE."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def latent_cell(vae: Any) -> int:
    """Pixels per side of one latent cell (8 for most VAEs)."""
    return int(vae.spacial_compression_encode())


def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """``[B, 3, H, W]`` in [0, 1] -> latents ``[B, C, h, w]`` as the VAE gives them, on the CPU."""
    latents = vae.encode(pixels.movedim(1, -1))
    return latents.float().cpu()


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the VAE gives them -> pictures ``[B, H, W, 3]`` in [0, 1]."""
    return vae.decode(latents).flatten(0, -4)


def to_image(picture: Image.Image) -> Tensor:
    """A PIL picture as ComfyUI's IMAGE ``[1, H, W, 3]``."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]
