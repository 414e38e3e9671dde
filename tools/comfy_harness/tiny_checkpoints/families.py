"""Write complete checkpoints of each model family, for the stock Load Checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .diffusion_models import SD15_SMALL, flux2_dit, flux_dit, pixart_dit, sd2_unet, sd3_mmdit, sd15_unet, sdxl_unet
from .text_encoders import FEW_LAYERS, H_OPTIONS, clip_g, clip_h, clip_l, t5
from .vae import thumbnail_vae

Make = Callable[[], dict[str, Tensor]]

few_clip_l = partial(clip_l, options=FEW_LAYERS)


@dataclass(frozen=True)
class Family:
    """Describe the small checkpoint of one model family.

    Args:
        architecture: ComfyUI's name of the architecture.
        parts: prefix in the file -> function that makes the tensors under it.
        text_options: the loader's ``te_model_options``, for text encoders of another size than usual.
    """

    architecture: str
    parts: Mapping[str, Make]
    text_options: Mapping[str, Any] = field(default_factory=dict)


DIFFUSION = "model.diffusion_model."

FAMILIES: dict[str, Family] = {
    "sd15": Family("SD15", {
        DIFFUSION: sd15_unet,
        "cond_stage_model.transformer.": clip_l,
        "first_stage_model.": thumbnail_vae,
    }),
    "sd2": Family("SD20", {
        DIFFUSION: sd2_unet,
        "cond_stage_model.model.transformer.": clip_h,
        "first_stage_model.": thumbnail_vae,
    }, H_OPTIONS),
    "sdxl": Family("Segmind_Vega", {
        DIFFUSION: sdxl_unet,
        "conditioner.embedders.0.transformer.": few_clip_l,
        "conditioner.embedders.1.model.transformer.": clip_g,
        "first_stage_model.": partial(thumbnail_vae, 4, 0.13025),
    }, FEW_LAYERS),
    "sd3": Family("SD3", {
        DIFFUSION: sd3_mmdit,
        "text_encoders.clip_l.transformer.": few_clip_l,
        "first_stage_model.": partial(thumbnail_vae, 16, 1.5305, 0.0609),
    }, FEW_LAYERS),
    "flux": Family("Flux", {
        DIFFUSION: flux_dit,
        "text_encoders.clip_l.transformer.": few_clip_l,
        "text_encoders.t5xxl.transformer.": t5,
        "vae.": partial(thumbnail_vae, 16, 0.3611, 0.1159),
    }, FEW_LAYERS),
    "flux2": Family("Flux2", {"": flux2_dit}),
    "pixart": Family("PixArtSigma", {"": pixart_dit}),
}  # fmt: skip
"""The last two are diffusion models alone, for the stock Load Diffusion Model: their text encoders are large."""


def write(path: Path, family: Family, dtype: torch.dtype = torch.float16) -> Path:
    """Write the checkpoint to ``path``, unless the file exists."""
    if path.exists():
        return path
    parts = {prefix: make() for prefix, make in family.parts.items()}
    tensors = {prefix + name: t.to(dtype).contiguous() for prefix, part in parts.items() for name, t in part.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary)
    temporary.replace(path)
    return path


def write_sd15(
    path: Path, config: dict[str, Any] = SD15_SMALL, dtype: torch.dtype = torch.float16, vae: Make = thumbnail_vae
) -> Path:  # fmt: skip
    """Write an SD1.5 checkpoint with a U-Net of the size in ``config``, unless the file exists."""
    sd15 = FAMILIES["sd15"]
    parts = {**sd15.parts, DIFFUSION: partial(sd15_unet, config), "first_stage_model.": vae}
    return write(path, Family(sd15.architecture, parts), dtype)
