"""The training session on a loaded MODEL (and CLIP): opened for gradients, restored afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.lightricks.model import LTXBaseModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.pixeldit.model import PixDiT_T2I

from ...models.backbone.frozen_layers import frozen
from ...models.hollowed_net.network import HollowedNetwork
from ...trainers.config import TrainingOptions
from ...trainers.data.dataset import Example, Subject
from ...trainers.session import TrainingSession
from ...trainers.torch_globals import pinned_globals
from .device_memory import ComfyDeviceMemory
from .model.denoiser import ComfyDenoiser
from .model.differentiable import differentiable_functions, without_prompt_caches
from .model.layers import adds_in_place, architecture
from .model.target_model import target_model
from .model.weight_access import access_weight
from .text.conditioning import ComfyTextConditioning

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MODIFY_SAVED_TENSORS = (LTXBaseModel, PixDiT_T2I)
"""Networks whose blocks modify in place what autograd has saved: ``x += attention(x)``, ``x.addcmul_(x, scale)``.

PyTorch refuses their backward. Under gradient checkpointing nothing checks, and gradients were 5 to 12 % wrong."""

ACTIVATIONS = 3
"""Ratio of training's activation memory to inference's, as an estimate for ComfyUI's model loading, which decides how
many weights stay on the device."""


@contextmanager
def training_session(
    model: Any, options: TrainingOptions, subject: Subject, *, batch_size: int, clip: Any = None,
    hollow: HollowedNetwork | None = None,
) -> Iterator[TrainingSession]:  # fmt: skip
    """Open a loaded MODEL (and CLIP) for training inside the block.

    Every other model leaves the device first. Autograd is on and ComfyUI's inference mode is off. Frozen weights are
    accessed layer by layer through ComfyUI's cast and never copied. After the block the model is as it was, also after
    an error.

    Args:
        model: the MODEL, as Load Checkpoint gives it or patched.
        options: the training options, of which the session uses the precision.
        subject: the encoded examples; checked against the model's latent and text shapes, and used to estimate the
            activation memory.
        batch_size: examples per forward pass, for the same estimate.
        clip: the CLIP if its text encoder or a learned embedding trains, else None; loaded on the model's device.
        hollow: the removed blocks, which run without gradients; none of their layers is offered for training.

    Raises:
        ValueError: the model carries bypass hooks, modifies in place what gradients need, is of a kind that cannot be
            trained, or ``subject`` was encoded by another model's VAE or text encoder.
    """
    _require_no_bypass_hooks(model)
    _require_gradients(model)
    for example in (*subject.examples, *subject.class_examples):
        _require_matching_encoders(model, example)
    patcher, clip = _with_precision(model, options.precision), _on_device_of(model, clip)
    patchers = [patcher] + ([clip.patcher] if clip is not None else [])
    _load_alone(patchers, subject, batch_size)
    with pinned_globals(), torch.inference_mode(False), torch.enable_grad(), _training_flag(), ExitStack() as stack:
        in_place = adds_in_place(patcher.model.diffusion_model)
        stack.enter_context(differentiable_functions())
        stack.enter_context(without_prompt_caches(patcher.model.diffusion_model))
        stack.enter_context(frozen(patcher.model, access_weight, in_place))
        if clip is not None:
            stack.enter_context(frozen(clip.cond_stage_model, access_weight, adds_in_place=True))
        if hollow is not None:
            stack.enter_context(hollow.without_gradients())
        yield _session(patcher, clip, hollow)


def _require_no_bypass_hooks(model: Any) -> None:
    if model.injections:
        raise ValueError(
            f"the model carries bypass hooks ({', '.join(model.injections)}); "
            "apply that LoRA in the ordinary way, or train on the model before it"
        )


def _require_gradients(model: Any) -> None:
    if isinstance(model.model.diffusion_model, MODIFY_SAVED_TENSORS):
        raise ValueError(
            f"model: the blocks of {architecture(model)} modify in place what gradients are computed from; "
            "it cannot be trained yet, use another model"
        )


def _require_matching_encoders(model: Any, example: Example) -> None:
    """Check by shape that the example was encoded by this model's VAE and text encoder."""
    latent_format = model.model.latent_format
    channels, dimensions = latent_format.latent_channels, latent_format.latent_dimensions
    if example.size[0] != channels or len(example.size) != dimensions + 1:
        raise ValueError(
            f"subject: its latents have {example.size[0]} channels in {len(example.size) - 1} dimensions, the "
            f"{architecture(model)} model takes {channels} in {dimensions}; use the model's own VAE in Subject"
        )
    if not isinstance(model.model.diffusion_model, UNetModel):
        return
    given, width = example.cond[0][0].shape[-1], model.model.model_config.unet_config["context_dim"]
    if given != width:
        raise ValueError(
            f"subject: its text embeddings have width {given}, the {architecture(model)} model takes {width}; "
            "use the model's own CLIP in Subject"
        )


def _with_precision(model: Any, precision: str) -> Any:
    patcher = model.clone()
    if precision != "auto":
        patcher.set_model_compute_dtype(COMPUTE_DTYPES[precision])
    return patcher


def _on_device_of(model: Any, clip: Any) -> Any:
    """Return the CLIP with its text encoder on the MODEL's device, where the adapter's parameters are.

    One that was loaded for the CPU, to save memory while prompts are encoded, trains there as well; ComfyUI moves it
    back when it is used again.
    """
    if clip is None or clip.patcher.load_device == model.load_device:
        return clip
    moved = clip.clone()
    moved.patcher.load_device = model.load_device
    return moved


def _load_alone(patchers: list[Any], subject: Subject, batch_size: int) -> None:
    """Load ``patchers`` on their devices and unload everything else (VAE, text encoder, other models) from them."""
    management = comfy.model_management
    keep = [
        loaded for loaded in management.current_loaded_models
        if loaded.model is not None and any(loaded.model.is_clone(patcher) for patcher in patchers)
    ]  # fmt: skip
    for device in {patcher.load_device for patcher in patchers}:
        management.free_memory(1e30, device, keep_loaded=keep)
    largest = max((example.size for example in subject.examples), key=lambda size: size[-1] * size[-2])
    activations = ACTIVATIONS * patchers[0].model.memory_required([batch_size, *largest])
    management.load_models_gpu(patchers, memory_required=activations)


@contextmanager
def _training_flag() -> Iterator[None]:
    """Set ComfyUI's training flag inside the block: its models then avoid in-place and fused inference kernels."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def _session(patcher: Any, clip: Any, hollow: HollowedNetwork | None) -> TrainingSession:
    patchers = [patcher] + ([clip.patcher] if clip is not None else [])
    denoiser = ComfyDenoiser(patcher)
    return TrainingSession(
        model=target_model(patcher, clip, hollow, denoiser.prediction),
        text=ComfyTextConditioning(patcher.model, patcher.load_device, clip),
        memory=ComfyDeviceMemory(patchers=patchers, device=patcher.load_device, hollow=hollow),
        denoiser=denoiser,
    )
