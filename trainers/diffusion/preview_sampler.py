"""A sample of the model as it stands, for the eye: few steps, small cost."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...models.backbone.denoiser import Denoiser
from ..engine.rng import generator_for

STEPS = 10
GUIDANCE = 5.0


@torch.no_grad()
def preview(denoiser: Denoiser, cond: Any, blank: Any, shape: tuple[int, ...], seed: int) -> Tensor:
    """One latent ``[1, C, h, w]`` in model space, by Euler steps down the model's own levels.

    Args:
        cond: conditioning of the prompt.
        blank: conditioning of the empty prompt for classifier-free guidance, or None to do without.
        shape: ``(C, h, w)`` of the latent.
        seed: of the starting noise; the same through a run, so that pictures compare.
    """
    table = denoiser.sigmas
    levels = [*table[torch.linspace(len(table) - 1, 0, STEPS).round().long()], table.new_zeros(())]
    noise = torch.randn((1, *shape), generator=generator_for(seed)).to(table.device)
    x = denoiser.add_noise(torch.zeros_like(noise), noise, levels[0].view(1))
    guided = _guided(denoiser, cond, blank)
    for now, after in itertools.pairwise(levels):
        x0 = guided(x, now.view(1))
        x = x0 + (x - x0) * (after / now)
    return x


def _guided(denoiser: Denoiser, cond: Any, blank: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """``x0(blank) + g (x0(cond) - x0(blank))``."""
    if blank is None:
        return lambda x, sigma: denoiser(x, sigma, cond)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        without = denoiser(x, sigma, blank)
        return without + GUIDANCE * (denoiser(x, sigma, cond) - without)

    return guided
