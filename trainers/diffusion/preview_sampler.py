"""A few-step Euler sampler for previews during training."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...models.backbone.denoiser import Denoiser
from ..engine.rng import generator_for

STEPS = 10
GUIDANCE_SCALE = 5.0


@torch.no_grad()
def sample_preview(denoiser: Denoiser, *, cond: Any, unconditional: Any, shape: tuple[int, ...], seed: int) -> Tensor:
    """Sample one latent ``[1, C, h, w]`` in model space, by Euler steps over the model's own noise levels.

    Args:
        denoiser: the model.
        cond: conditioning of the prompt.
        unconditional: conditioning of the empty prompt for classifier-free guidance, or None for no guidance.
        shape: ``(C, h, w)`` of the latent.
        seed: of the starting noise; the same throughout a run, so that images can be compared.
    """
    table = denoiser.sigmas
    levels = [*table[torch.linspace(len(table) - 1, 0, STEPS).round().long()], table.new_zeros(())]
    noise = torch.randn((1, *shape), generator=generator_for(seed)).to(table.device)
    x = denoiser.add_noise(torch.zeros_like(noise), noise, levels[0].view(1))
    guided = _guided(denoiser, cond, unconditional)
    for sigma, next_sigma in itertools.pairwise(levels):
        x0 = guided(x, sigma.view(1))
        x = x0 + (x - x0) * (next_sigma / sigma)
    return x


def _guided(denoiser: Denoiser, cond: Any, unconditional: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the guided estimate ``x0(empty) + g (x0(cond) - x0(empty))``."""
    if unconditional is None:
        return lambda x, sigma: denoiser(x, sigma, cond)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        without = denoiser(x, sigma, unconditional)
        return without + GUIDANCE_SCALE * (denoiser(x, sigma, cond) - without)

    return guided
