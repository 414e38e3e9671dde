"""Distributions of noise levels (sigma), and the noise that training adds to latents.

The draws of step k depend on ``(seed, k)`` alone, so that a run can be resumed at any step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def standard_noise(shape: tuple[int, ...], generator: torch.Generator, offset: float = 0.0) -> Tensor:
    """Return standard normal noise ``[B, C, h, w]`` with offset noise.

    Offset noise (crosslabs.org, 2023) lets a model learn an image's overall brightness, which noise of mean zero never
    hides.

    Args:
        shape: ``(B, C, h, w)``.
        generator: on the CPU.
        offset: standard deviation of a value added per channel, 0 for none.
    """
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise += offset * torch.randn(shape[:2], generator=generator).view(*shape[:2], *[1] * (len(shape) - 2))
    return noise


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """A distribution of noise levels over a model's own table.

    A quantile p in [0, 1) is drawn, and with it the noise level ``sigmas[floor((low + (high - low) p) T)]``. The table
    of a flow model includes that model's own shift (Model Sampling SD3 and Flux change it).

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
        """Draw ``n`` noise levels.

        Args:
            sigmas: the model's table ``[T]``.
            n: number of levels.
            generator: on the CPU.

        Returns:
            ``[n]``, on the device of ``sigmas``.
        """
        return self._at(torch.rand(n, generator=generator), sigmas)

    def spread(self, sigmas: Tensor, n: int) -> Tensor:
        """Return the distribution's quantiles at ``(i + 1/2) / n``, ``[n]``: the same noise levels every time."""
        return self._at((torch.arange(n) + 0.5) / n, sigmas)

    def _at(self, u: Tensor, sigmas: Tensor) -> Tensor:
        position = self.low + (self.high - self.low) * DISTRIBUTIONS[self.distribution](u, self)
        index = (position * len(sigmas)).long().clamp(0, len(sigmas) - 1)
        return sigmas[index.to(sigmas.device)]


def _uniform(u: Tensor, levels: NoiseLevels) -> Tensor:
    """t ~ U{0 .. T-1}: L_simple of DDPM, eq. 14 (2006.11239)."""
    return u


def _logit_normal(u: Tensor, levels: NoiseLevels) -> Tensor:
    """t = sigmoid(z), z ~ N(mean, std): Stable Diffusion 3, eq. 19 (2403.03206)."""
    return (levels.mean + levels.std * torch.special.ndtri(u)).sigmoid()


def _sigmoid(u: Tensor, levels: NoiseLevels) -> Tensor:
    """t = sigmoid(z), z ~ N(0, 1): other trainers' name for ``logit_normal`` with the paper's parameters."""
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
"""Quantile functions: u in (0, 1) -> relative position in the table."""
