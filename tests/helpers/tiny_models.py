"""The smallest network of each family as a MODEL, with a subject for it, and the same network in plain PyTorch."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import comfy_kitchen
import pytest
import torch
import torch.nn.functional as F
from hyperbooth.models.adapters import LoRAConfig
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import Target
from hyperbooth.trainers.data.dataset import Subject
from torch import Tensor

from tools.comfy_harness.tiny_checkpoints.specifications import SPECIFICATIONS, Specification

LENGTHS = (12, 17)
"""Tokens of the two texts of a subject."""


@dataclass(frozen=True)
class TinyModel:
    """One family's small model as the stock loader gives it, and two examples for it."""

    specification: Specification
    model: Any
    subject: Subject


def load(name: str, node: Any) -> TinyModel:
    """Load the family as nodes do, under inference mode."""
    specification = SPECIFICATIONS[name]
    with torch.inference_mode():
        model = specification.load()
    generator = torch.Generator().manual_seed(0)
    latents = [{"samples": torch.randn(2, *specification.latent, generator=generator)}]
    texts = [specification.text(count) for count in LENGTHS]
    (subject,) = node("SubjectFromLatents", latents=latents, positive=texts)
    return TinyModel(specification, model, subject)


def noisy(tiny: TinyModel) -> tuple[Tensor, Tensor]:
    """Return fixed noisy latents of both examples, and their noise levels, one high and one in the middle."""
    sampling = tiny.model.get_model_object("model_sampling")
    sigmas = sampling.sigmas.clone()
    sigma = sigmas[[len(sigmas) // 2, len(sigmas) * 3 // 4]]
    noise = torch.randn(2, *tiny.specification.latent, generator=torch.Generator().manual_seed(1))
    latents = torch.cat([example.latents for example in tiny.subject.examples])
    return sampling.noise_scaling(sigma.view(-1, *[1] * (noise.ndim - 1)), noise, latents), sigma


def random_lora(targets: Sequence[Target]) -> Adapter:
    """Return a LoRA whose change is not zero."""
    adapter = Adapter.create("lora", targets, LoRAConfig(rank=2, alpha=2.0), torch.Generator())
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return adapter


def plain_model(tiny: TinyModel, adapter: Adapter) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """Return the model again with ordinary float32 tensors and weights ``W + up down``, and the factors by layer."""
    original = tiny.model.model
    network = tiny.specification.rebuild(original.diffusion_model, original.model_config.unet_config)
    plain = copy.copy(original)
    plain._modules = {**original._modules, "diffusion_model": network}
    factors = {}
    for name, layer in adapter.layers.items():
        up, down = (parameter.detach().clone().requires_grad_() for parameter in (layer.up, layer.down))
        factors[name] = (up, down)
        _change(network.get_submodule(name.removeprefix("diffusion_model.")), up, down)
    return plain, factors


def _change(layer: torch.nn.Module, up: Tensor, down: Tensor) -> None:
    layer.forward = lambda x: F.linear(x, layer.weight + up @ down, layer.bias)


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """Inside the block ComfyUI's models run with functions that autograd knows, in our own words."""
    with pytest.MonkeyPatch.context() as patch, torch.autograd.graph.allow_mutation_on_saved_tensors():
        patch.setattr(comfy.model_management, "in_training", True)
        for name, function in _PLAIN.items():
            patch.setattr(comfy_kitchen, name, function)
        yield


def plain_attention(_chosen: Any, *args: Any, **kwargs: Any) -> Tensor:
    return comfy.ldm.modules.attention.attention_basic(*args, **kwargs)


def _rotate(x: Tensor, frequencies: Tensor, half: bool) -> Tensor:
    """Rotate pairs of channels (neighbors, or one of each half) by 2 x 2 matrices."""
    pairs = x.unflatten(-1, (2, -1)).movedim(-2, -1) if half else x.unflatten(-1, (-1, 2))
    turned = (frequencies * pairs.unsqueeze(-2).to(frequencies.dtype)).sum(-1)
    return (turned.movedim(-1, -2) if half else turned).flatten(-2).to(x.dtype)


def _normed(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * scale


def _two(half: bool, norm: bool) -> Any:
    def function(q: Tensor, k: Tensor, frequencies: Tensor, *scales: Any, rot_dim: int = 0) -> tuple[Tensor, Tensor]:
        assert rot_dim in (0, q.shape[-1])
        if norm:
            q_scale, k_scale, epsilon = scales
            q, k = _normed(q, q_scale, epsilon), _normed(k, k_scale, epsilon)
        return _rotate(q, frequencies, half), _rotate(k, frequencies, half)

    return function


_PLAIN = {
    "apply_rope": _two(half=False, norm=False), "apply_rope_split_half": _two(half=True, norm=False),
    "rms_rope": _two(half=False, norm=True), "rms_rope_split_half": _two(half=True, norm=True),
    "apply_rope1": lambda x, frequencies: _rotate(x, frequencies, half=False),
    "apply_rope_split_half1": lambda x, frequencies: _rotate(x, frequencies, half=True),
    "rms_rope1": lambda x, frequencies, scale, epsilon=1e-6: _rotate(_normed(x, scale, epsilon), frequencies, False),
}  # fmt: skip
