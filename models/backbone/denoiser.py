"""The denoiser interface through which the trainers see every diffusion model."""

from enum import Enum
from typing import Any, Protocol

from torch import Tensor


class Prediction(Enum):
    """What the network's output stands for; a :class:`Denoiser` converts all of them to x0."""

    EPS = "eps"
    V = "v"
    FLOW = "flow"


class Denoiser(Protocol):
    """The function ``(x, sigma, cond) -> x0_hat``, for every parameterization of the network.

    ``sigma [B]`` is the noise level in the model's own scale: for eps and v models
    ``x = x0 + sigma * noise``, for flow models ``x = (1 - sigma) x0 + sigma * noise``.
    """

    prediction: Prediction
    sigma_data: float
    sigmas: Tensor
    """The model's own table of noise levels, ascending, ``[T]``."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return the denoised estimate ``x0_hat [B, C, h, w]`` of ``x``, in float32."""

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the noisy ``x [B, C, h, w]`` of ``x0``.

        Args:
            x0: clean latents ``[B, C, h, w]``.
            noise: standard normal, of the same shape.
            sigma: noise levels ``[B]``.
        """
