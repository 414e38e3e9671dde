"""Small pictures straight from latents, as the sampler's previews are made: no VAE needed on the device."""

from typing import Any

import latent_preview
from PIL import Image
from torch import Tensor

SIDE = 320


def preview_image(latent_format: Any, latents: Tensor) -> Image.Image | None:
    """A picture of the first of ``latents`` (model space), or None if the format has no preview.

    The preview method the user chose for samplers is used; with none chosen, the latent's colours.
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
    picture = previewer.decode_latent_to_preview(latents.float())
    scale = max(1, SIDE // max(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
