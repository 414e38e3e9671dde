"""Which noise level each sample of a step gets, and every other draw of a step.

Randomness of step k comes from ``(seed, k)`` alone, so that a run can be taken up at any step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def standard_noise(shape: tuple[int, ...], generator: torch.Generator, offset: float = 0.0) -> Tensor:
    """Standard normal noise ``[B, C, h, w]``; ``offset`` adds that much of one number per channel.

    Offset noise (crosslabs.org, 2023) lets a model learn a picture's overall brightness, which noise of mean zero
    never hides.
    """
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise += offset * torch.randn(shape[:2], generator=generator).view(*shape[:2], *[1] * (len(shape) - 2))
    return noise


@dataclass(frozen=True)
class NoiseLevels:
    """A distribution of noise levels over a model's own table.

    A place p in [0, 1) is drawn and the level there is taken: ``sigmas[floor((low + (high - low) p) T)]``. The table
    of a flow model holds that model's own shift already (Model Sampling SD3 and Flux change it).

    Args:
        distribution: one of :data:`DISTRIBUTIONS`.
        mean, std: of the normal behind ``logit_normal``; a higher mean trains more at high noise.
        shift: s of ``shifted``; above 1 trains more at high noise.
        low, high: the part of the table used, from 0 (no noise) to 1.
    """

    distribution: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 3.0
    low: float = 0.0
    high: float = 1.0

    def sample(self, sigmas: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """``n`` levels drawn at random, ``[n]``, on the device of ``sigmas [T]``."""
        return self._levels(sigmas, torch.rand(n, generator=generator))

    def spread(self, sigmas: Tensor, n: int) -> Tensor:
        """The distribution's quantiles at ``(i + 1/2) / n``, ``[n]``: the same levels every time."""
        return self._levels(sigmas, (torch.arange(n) + 0.5) / n)

    def _levels(self, sigmas: Tensor, u: Tensor) -> Tensor:
        place = self.low + (self.high - self.low) * DISTRIBUTIONS[self.distribution](u, self)
        index = (place * len(sigmas)).long().clamp(0, len(sigmas) - 1)
        return sigmas[index.to(sigmas.device)]


def _uniform(u: Tensor, levels: NoiseLevels) -> Tensor:
    """t ~ U{0 .. T-1}: L_simple of DDPM, eq. 14 (2006.11239)."""
    return u


def _logit_normal(u: Tensor, levels: NoiseLevels) -> Tensor:
    """t = sigmoid(z), z ~ N(mean, std): Stable Diffusion 3, eq. 19 (2403.03206)."""
    return (levels.mean + levels.std * torch.special.ndtri(u)).sigmoid()


def _sigmoid(u: Tensor, levels: NoiseLevels) -> Tensor:
    """t = sigmoid(z), z ~ N(0, 1): what other trainers call so; ``logit_normal`` as the paper uses it."""
    return torch.special.ndtri(u).sigmoid()


def _shifted(u: Tensor, levels: NoiseLevels) -> Tensor:
    """t = s u / (1 + (s - 1) u): Stable Diffusion 3's shift, eq. 23 (2403.03206), on top of the table's own."""
    return levels.shift * u / (1 + (levels.shift - 1) * u)


DISTRIBUTIONS: dict[str, Callable[[Tensor, NoiseLevels], Tensor]] = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    "sigmoid": _sigmoid,
    "shifted": _shifted,
}
"""Quantile functions: u in (0, 1) -> place in the table."""
