"""Small preview images from latents by the sampler's preview method, without the VAE."""

from typing import Any

import latent_preview
from PIL import Image
from torch import Tensor

PREVIEW_SIDE = 320
"""Pixels: previews are enlarged by the largest integer factor that keeps their longer side within it."""


def preview_image(latent_format: Any, latents: Tensor) -> Image.Image | None:
    """Return a preview of the first of ``latents``, or None if the format has none.

    The preview method chosen for samplers is used; if none is chosen, the latent format's linear RGB factors.

    Args:
        latent_format: ComfyUI's latent format of the model.
        latents: ``[n, C, h, w]`` in model space.
    """
    previewer = latent_preview.get_previewer(latents.device, latent_format)
    if previewer is None and latent_format.latent_rgb_factors is not None:
        previewer = latent_preview.Latent2RGBPreviewer(
            latent_format.latent_rgb_factors,
            latent_format.latent_rgb_factors_bias,
            latent_format.latent_rgb_factors_reshape,
        )
    if previewer is None:
        return None
    image = previewer.decode_latent_to_preview(latents.float())
    scale = max(1, PREVIEW_SIDE // max(image.size))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
