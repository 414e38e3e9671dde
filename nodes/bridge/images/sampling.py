"""Pictures sampled by ComfyUI's own samplers."""

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


def sample_latents(
    model: Any, positive: Any, negative: Any, size: tuple[int, int, int], seed: int, *,
    steps: int, cfg: float, sampler_name: str, scheduler: str, on_step: Callable[[], None],
) -> Tensor:  # fmt: skip
    """Latents ``[n, C, h, w]`` (as the VAE takes them) of ``size = (n, h, w)`` in cells, by the stock sampler."""
    count, rows, columns = size
    empty = torch.zeros(count, 4, rows, columns)
    empty = comfy.sample.fix_empty_latent_channels(model, empty)
    noise = comfy.sample.prepare_noise(empty, seed)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler_name, scheduler, positive, negative, empty, seed=seed,
        callback=lambda *_: on_step(), disable_pbar=True,
    )  # fmt: skip
