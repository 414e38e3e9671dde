"""Sampling of images by ComfyUI's own samplers."""

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


def sample_latents(
    model: Any, positive: Any, negative: Any, *, size: tuple[int, int, int], seed: int, steps: int, cfg: float,
    sampler_name: str, scheduler: str, on_step: Callable[[], None],
) -> Tensor:  # fmt: skip
    """Sample latents ``[n, C, h, w]`` in the VAE's space, as the stock KSampler does.

    Args:
        model: the MODEL.
        positive: CONDITIONING of the prompt.
        negative: CONDITIONING of the negative prompt.
        size: ``(n, h, w)``, with height and width in latent cells.
        seed: of the initial noise.
        steps: sampling steps.
        cfg: guidance scale.
        sampler_name: one of :data:`SAMPLERS`.
        scheduler: one of :data:`SCHEDULERS`.
        on_step: called after each step.
    """
    count, rows, columns = size
    empty = torch.zeros(count, 4, rows, columns)
    empty = comfy.sample.fix_empty_latent_channels(model, empty)
    noise = comfy.sample.prepare_noise(empty, seed)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler_name, scheduler=scheduler, positive=positive, negative=negative,
        latent_image=empty, seed=seed, callback=lambda *_: on_step(), disable_pbar=True,
    )  # fmt: skip
