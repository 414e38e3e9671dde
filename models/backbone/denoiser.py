"""The one shape in which every diffusion model meets the trainers."""

from enum import Enum
from typing import Any, Protocol

from torch import Tensor


class Prediction(Enum):
    """What a network's output stands for; all are turned into x0 before anything here sees them."""

    EPS = "eps"
    V = "v"
    FLOW = "flow"


class Denoiser(Protocol):
    """``(x, sigma, cond) -> x0_hat``, whatever the network predicts.

    ``sigma [B]`` is the noise level in the model's own scale: for eps and v models
    ``x = x0 + sigma * noise``, for flow models ``x = (1 - sigma) x0 + sigma * noise``.
    """

    prediction: Prediction
    sigma_data: float
    sigmas: Tensor
    """The model's own table of noise levels, ascending, ``[T]``."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """The denoised estimate ``x0_hat [B, C, h, w]`` of ``x``, in float32."""

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """``x`` at level ``sigma [B]`` from ``x0`` and standard normal ``noise``."""
