"""Load the base as ComfyUI's objects in this process, and sample images from it as the stock KSampler does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..drawing.render import SIZE
from .autoencoder import CHANNELS
from .checkpoint import checkpoint
from .family import register

SAMPLING: dict[str, Any] = {"steps": 20, "cfg": 2.5, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
"""The base's sampling settings, by the names of the stock KSampler."""


@dataclass(frozen=True)
class Loaded:
    """Hold MODEL, CLIP and VAE of the stock loader."""

    model: Any
    clip: Any
    vae: Any


def load(path: Path) -> Loaded:
    """Load the base from the checkpoint at `path`, which is written unless it exists; the U-Net computes in float32."""
    import comfy.sd

    register()
    with torch.inference_mode():
        loaded = comfy.sd.load_checkpoint_guess_config(str(checkpoint(path)), model_options={"dtype": torch.float32})
    return Loaded(*loaded[:3])


def sample(base: Loaded, prompts: list[str], seed: int, **sampling: Any) -> Tensor:
    """Return one image per prompt, sampled in one batch from independent noise, [prompts, 64, 64, 3] in [0, 1]."""
    from nodes import common_ksampler

    with torch.inference_mode():
        positive = [[torch.cat([_cond(base.clip, prompt) for prompt in prompts]), {}]]
        negative = [[_cond(base.clip, ""), {}]]
        latent = {"samples": torch.zeros(len(prompts), CHANNELS, SIZE // 8, SIZE // 8)}
        chosen = {**SAMPLING, **sampling}
        order = ("steps", "cfg", "sampler_name", "scheduler")
        (made,) = common_ksampler(base.model, seed, *(chosen[k] for k in order), positive, negative, latent)
        return base.vae.decode(made["samples"])


def _cond(clip: Any, prompt: str) -> Tensor:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]
