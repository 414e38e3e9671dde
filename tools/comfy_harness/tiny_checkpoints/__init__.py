"""Make small checkpoints in the real layouts, with random weights."""

from .diffusion_models import SD15_FULL, SD15_SMALL, sd15_unet
from .families import FAMILIES, Family, write, write_sd15
from .vae import sd15_vae, thumbnail_vae

__all__ = [
    "FAMILIES",
    "SD15_FULL",
    "SD15_SMALL",
    "Family",
    "sd15_unet",
    "sd15_vae",
    "thumbnail_vae",
    "write",
    "write_sd15",
]
