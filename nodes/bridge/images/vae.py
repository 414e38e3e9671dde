"""Encoding and decoding of images by the VAE."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def latent_cell(vae: Any) -> int:
    """Return the pixels per side of one latent cell (8 for most VAEs)."""
    return int(vae.spacial_compression_encode())


def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """Encode images ``[B, 3, H, W]`` in [0, 1] to latents ``[B, C, h, w]`` (VAE space, float32, CPU)."""
    latents = vae.encode(pixels.movedim(1, -1))
    return latents.float().cpu()


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents in the VAE's space to images ``[B, H, W, 3]`` in [0, 1]."""
    return vae.decode(latents).flatten(0, -4)


def to_image(image: Image.Image) -> Tensor:
    """Convert a PIL image to ComfyUI's IMAGE ``[1, H, W, 3]`` in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]
