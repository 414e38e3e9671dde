"""A loaded MODEL as the denoiser of the training session."""

from typing import Any

import comfy.model_sampling
import torch
from comfy.ldm.modules.attention import attention_pytorch
from PIL import Image
from torch import Tensor

from ....models.backbone.denoiser import Prediction
from ..images.latent_preview import preview_image


class ComfyDenoiser:
    """The denoiser ``(x, sigma, cond) -> x0_hat`` by the model's own ``apply_model``.

    Implements :class:`trainers.session.LatentDenoiser`. PyTorch's attention is used whatever backend ComfyUI runs
    with: the others are slower in backward or have none. Sampling patches of other nodes (FreeU, token merging,
    caches, compilation) are not applied: the bare network trains, with the MODEL's weights and sampling equations.

    Args:
        patcher: the MODEL, loaded on its device.
    """

    def __init__(self, patcher: Any):
        self.model = patcher.model
        self.sampling = patcher.get_model_object("model_sampling")
        self.prediction = prediction_of(self.sampling)
        self.sigma_data = 1.0 if self.prediction is Prediction.FLOW else float(self.sampling.sigma_data)
        self.device = patcher.load_device
        self.sigmas = self.sampling.sigmas.to(self.device, copy=True)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Denoise a batch in one pass, or sample by sample if ``cond`` is a tuple.

        Args:
            x: noisy latents ``[B, C, ..., h, w]``.
            sigma: noise levels ``[B]``.
            cond: arguments of ``apply_model`` for the batch, or a tuple of them, one per sample, if the samples' texts
                cannot be concatenated.
        """
        if isinstance(cond, tuple):
            return torch.cat([self(*single) for single in zip(x.split(1), sigma.split(1), cond, strict=True)])
        repeated = {name: _for_batch(value, len(x)) for name, value in cond.items()}
        return self.model.apply_model(x, sigma, transformer_options=_options(), **repeated)

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the noisy latents by the model's own noise scaling.

        Args:
            x0: clean latents ``[B, C, ..., h, w]``.
            noise: standard normal, of the same shape.
            sigma: noise levels, broadcastable to ``x0``.
        """
        return self.sampling.noise_scaling(sigma, noise, x0)

    def to_model(self, latents: Tensor) -> Tensor:
        """Convert latents from the VAE's space to the model's, in float32 on the device."""
        return self.model.process_latent_in(latents.to(self.device, torch.float32, copy=True))

    def preview(self, latents: Tensor) -> Image.Image | None:
        """Return a small image of latents in model space, or None if the latent format has no preview."""
        return preview_image(self.model.latent_format, latents)


def prediction_of(sampling: Any) -> Prediction:
    """Return what the network predicts (eps, v or flow), from the class of its sampling equations.

    Raises:
        ValueError: the trainers have no objective for this class.
    """
    kinds = comfy.model_sampling
    if not isinstance(sampling, (kinds.X0, kinds.IMG_TO_IMG_FLOW)):
        if isinstance(sampling, kinds.CONST):
            return Prediction.FLOW
        if isinstance(sampling, kinds.V_PREDICTION):
            return Prediction.V
        if isinstance(sampling, kinds.EPS):
            return Prediction.EPS
    names = " / ".join(base.__name__ for base in type(sampling).__bases__)
    raise ValueError(f"model: it samples as {names}; only eps, v and flow models can be trained")


def _options() -> dict[str, Any]:
    return {"optimized_attention_override": _pytorch_attention}


def _pytorch_attention(_chosen: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


def _for_batch(value: Any, batch: int) -> Any:
    """Repeat a single sample's condition for a batch."""
    if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == 1 and batch > 1:
        return value.expand(batch, *value.shape[1:])
    return value
