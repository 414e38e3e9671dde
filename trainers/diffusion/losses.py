"""Weights w(sigma) of the denoising loss ``w(sigma) ||x0_hat - x0||^2``, and the loss itself.

| symbol | meaning                                                            |
|--------|--------------------------------------------------------------------|
| x0     | the clean latent, ``[B, C, h, w]``                                 |
| x0_hat | the model's estimate of it from the noisy one                      |
| sigma  | noise level in the model's own scale, ``[B]``                      |
| snr    | ``x0``'s scale^2 over the noise's: 1/sigma^2, or ((1-s)/s)^2 (flow)|

Every network's output is an affine function of x0_hat at a given x and sigma, so each objective on outputs is
one on x0_hat with another weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...models.backbone.denoiser import Denoiser, Prediction

Weighting = Callable[[Tensor, Denoiser], Tensor]
"""``(sigma [B], denoiser) -> w [B]``."""
Teacher = Callable[[Tensor, Tensor], Tensor]
"""``(x, sigma) -> x0_hat`` of a model that is not trained."""


def l_simple(sigma: Tensor, denoiser: Denoiser) -> Tensor:
    """Weight for the plain squared error of the network's output.

    DDPM, eq. 14 (2006.11239); v: 2202.00512; flow: 2403.03206, eq. 13.

    eps:  ``x0_hat - x0 = -sigma (eps_hat - eps)``, so w = 1 / sigma^2
    flow: ``x0_hat - x0 = -sigma (v_hat - v)``, so w = 1 / sigma^2
    v:    ``x0_hat - x0 = -sigma d / sqrt(sigma^2 + d^2) (v_hat - v)`` with d = sigma_data,
          so w = (sigma^2 + d^2) / (sigma d)^2
    """
    if denoiser.prediction is Prediction.V:
        return (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return 1 / sigma**2


def x0(sigma: Tensor, denoiser: Denoiser) -> Tensor:
    """Weight for the plain squared error of x0: w = 1. High noise levels dominate."""
    return torch.ones_like(sigma)


def min_snr(sigma: Tensor, denoiser: Denoiser, gamma: float = 5.0) -> Tensor:
    """Weight by Min-SNR (2303.09556, eq. 9).

    It is ``min(snr, gamma)`` on x0, which is ``min(snr, gamma) / snr`` on eps and ``min(snr, gamma) / (snr + 1)`` on v.

    Args:
        sigma: noise levels ``[B]``.
        denoiser: the model, for its kind of prediction.
        gamma: bound of the weight.
    """
    return _snr(sigma, denoiser).clamp(max=gamma)


def debiased(sigma: Tensor, denoiser: Denoiser) -> Tensor:
    """Weight by debiased estimation (2310.08442): ``sqrt(snr)`` on x0, which is ``1 / sqrt(snr)`` on eps."""
    return _snr(sigma, denoiser).sqrt()


def _snr(sigma: Tensor, denoiser: Denoiser) -> Tensor:
    return ((1 - sigma) / sigma) ** 2 if denoiser.prediction is Prediction.FLOW else 1 / sigma**2


WEIGHTINGS: dict[str, Weighting] = {"l_simple": l_simple, "min_snr": min_snr, "debiased": debiased, "x0": x0}


def weighting(name: str, gamma: float) -> Weighting:
    """Return the weighting of that name in :data:`WEIGHTINGS`; ``gamma`` is Min-SNR's."""
    return partial(min_snr, gamma=gamma) if name == "min_snr" else WEIGHTINGS[name]


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss:
    """``w(sigma) mean((x0_hat - x0)^2)`` for each sample; a mask weights the mean over positions.

    Args:
        denoiser: the model.
        weighting: w(sigma).
    """

    denoiser: Denoiser
    weighting: Weighting

    def __call__(
        self,
        clean: Tensor,
        cond: Any,
        sigma: Tensor,
        noise: Tensor,
        *,
        mask: Tensor | None = None,
        teacher: Teacher | None = None,
    ) -> Tensor:
        """Return the unreduced loss ``[B]``.

        Args:
            clean: x0 ``[B, C, h, w]`` in model space.
            cond: conditioning of the denoiser, one entry per sample.
            sigma: noise levels ``[B]``.
            noise: standard normal, like ``clean``.
            mask: weights ``[B, 1, h, w]`` in [0, 1], or None for 1 everywhere.
            teacher: its estimate from the same noisy latent replaces x0 as the target.
        """
        noisy = self.denoiser.add_noise(clean, noise, sigma)
        target = clean if teacher is None else teacher(noisy, sigma)
        estimate = self.denoiser(noisy, sigma, cond)
        error = (estimate.float() - target.float()) ** 2
        return self.weighting(sigma, self.denoiser) * _mean_over_positions(error, mask)


def _mean_over_positions(error: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return error.flatten(1).mean(1)
    weights = mask.expand_as(error)
    return (error * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)
