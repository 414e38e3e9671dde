"""Adapters on ComfyUI's models, by its own LoRA code."""

from collections.abc import Callable
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ...models.adapter_set import AdapterSet
from ...models.dialects import stock_tensors
from ...models.targets import DIFFUSION_PREFIX, TEXT_PREFIX
from .session import adaptable_layers, architecture, layer_shapes
from .weights import borrow


def apply_adapter(model: Any, clip: Any, adapter: AdapterSet, strength_model: float, strength_clip: float) -> tuple:
    """New MODEL and CLIP with the adapter's patches on them, by the stock LoRA code.

    Raises:
        ValueError: the adapter's layers are not the model's; both sides are named.
    """
    check_fits(model, clip, adapter)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    patches = comfy.lora.load_lora(stock_tensors(adapter), keys, log_missing=False)
    patched = model.clone()
    patched.add_patches(_part(patches, DIFFUSION_PREFIX, True), strength_model)
    if clip is not None:
        clip = clip.clone()
        clip.add_patches(_part(patches, DIFFUSION_PREFIX, False), strength_clip)
    return patched, clip


def check_fits(model: Any, clip: Any, adapter: AdapterSet) -> None:
    """Every layer of the adapter is in the model, with the same shape of weight."""
    shapes = layer_shapes(adaptable_layers(model, clip))
    for name, target in adapter.targets().items():
        if name.startswith(TEXT_PREFIX) and clip is None:
            continue
        if shapes.get(name) != target.shape:
            has = shapes.get(name, "no such layer")
            raise ValueError(
                f"the adapter was trained on {adapter.facts.get('base', 'another model')} and does not fit this "
                f"{architecture(model)}: {name} is {target.shape} in the adapter, {has} in the model"
            )


def base_weights(model: Any) -> Callable[[str], Tensor]:
    """Layer name -> the model's weight in float32, wherever and however it is kept."""
    layers = adaptable_layers(model)
    like = torch.empty(0, device=model.load_device)

    def weight_of(name: str) -> Tensor:
        with borrow(layers[name], like) as (weight, _):
            return weight.float().cpu()

    return weight_of


def has_text_layers(adapter: AdapterSet) -> bool:
    """Whether the adapter changes the text encoder too."""
    return any(name.startswith(TEXT_PREFIX) for name in adapter.targets())


def _part(patches: dict[Any, Any], prefix: str, inside: bool) -> dict[Any, Any]:
    return {key: patch for key, patch in patches.items() if str(key).startswith(prefix) == inside}
