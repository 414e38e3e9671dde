"""Adapters on ComfyUI's models, by its own LoRA code."""

import logging
from typing import Any

import comfy.lora
import comfy.model_patcher
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ....models.adapters import Full, LoRA
from ....models.adapters.stack import AdapterStack, WeightOf
from ....models.adapters.targets import DIFFUSION_PREFIX, TEXT_PREFIX
from ....models.adapters.weight_update import ProjectOut
from ....models.files.lora_key_formats import comfyui_tensors
from ....models.hypernetwork.predictor import is_predicted
from ....models.metadata.base_fingerprint import base_distance, recorded_fingerprints
from ..model.layers import adaptable_layers, architecture, layer_shapes
from ..text.learned_embeddings import with_embeddings
from .weight_adapter import StackWeightAdapter

WRITTEN_DOWN = (
    "is a PaRa written down as a LoRA",
    "the adapter file in format 'hyperbooth', which fits every base, or the base it was exported from",
)
PREDICTED = "was predicted by a hypernetwork", "the base that the hypernetwork was trained on"
"""What an adapter for one base is, and what to do instead."""


def apply_adapter(model: Any, clip: Any, adapter: AdapterStack, strength_model: float, strength_clip: float) -> tuple:
    """New MODEL and CLIP with the adapter's patches on them, as the stock loader would put the saved file.

    The CLIP knows the adapter's words, too.

    Raises:
        ValueError: the adapter's layers or words are not the model's; both sides are named.
    """
    require_layers_present(model, clip, adapter)
    patches = _patches(model, clip, adapter)
    patched = model.clone()
    if strength_model:
        patched.add_patches(_part(patches, DIFFUSION_PREFIX, True), strength_model)
    if clip is not None:
        clip = with_embeddings(clip.clone(), adapter.embeddings)
        if strength_clip:
            clip.add_patches(_part(patches, DIFFUSION_PREFIX, False), strength_clip)
    return patched, clip


def _patches(model: Any, clip: Any, adapter: AdapterStack) -> dict[Any, Any]:
    """ComfyUI's key -> patch. Single links that bear stock names in files are stock patches here too."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    if [link.family for link in adapter.adapters] in ([LoRA.family], [Full.family]):
        return comfy.lora.load_lora(comfyui_tensors(adapter), keys, log_missing=False)
    return {
        keys[name]: StackWeightAdapter.of(steps) for name, steps in adapter.weight_updates().items() if name in keys
    }


def require_layers_present(model: Any, clip: Any, adapter: AdapterStack) -> None:
    """Every layer of the adapter is in the model, with the same shape of weight."""
    shapes = layer_shapes(adaptable_layers(model, clip))
    for name, target in adapter.targets().items():
        if name.startswith(TEXT_PREFIX) and clip is None:
            continue
        if shapes.get(name) != target.shape:
            has = shapes.get(name, "no such layer")
            raise ValueError(
                f"the adapter was trained on {adapter.metadata.get('base', 'another model')} and does not fit this "
                f"{architecture(model)}: {name} is {target.shape} in the adapter, {has} in the model"
            )


def base_weights(model: Any, clip: Any = None) -> WeightOf:
    """Layer name -> the weight in float32, as the sampler would see it: with the patches that the MODEL (and CLIP)
    carries, whichever are in place at the moment.

    Raises:
        ValueError (when called): a text-encoder layer is asked for, and there is no ``clip``.
    """

    def weight_of(name: str) -> Tensor:
        if name.startswith(TEXT_PREFIX) and clip is None:
            raise ValueError(f"clip is not connected, but {name} is a layer of the text encoder; connect it")
        patcher = clip.patcher if name.startswith(TEXT_PREFIX) else model
        return _weight(patcher, f"{name.removeprefix(TEXT_PREFIX)}.weight")

    return weight_of


def _weight(patcher: Any, key: str) -> Tensor:
    """The weight under ``key``: as it was loaded, then the patches on it."""
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    if key in patcher.backup:
        weight = patcher.backup[key].weight
    if key in patcher.hook_backup:
        weight = patcher.hook_backup[key][0]
    if isinstance(weight, QuantizedTensor):
        weight, convert = weight.dequantize(), None
    with torch.inference_mode():
        weight = weight.to("cpu", torch.float32, copy=True)
        if convert is not None:
            weight = convert(weight, inplace=True)
        weight = comfy.lora.calculate_weight(patcher.patches.get(key, []), weight, key)
    return weight.clone()


def require_convertible_to_lora(model: Any, clip: Any, adapter: AdapterStack) -> None:
    """The adapter can be written down as a plain LoRA for this MODEL (and CLIP).

    Raises:
        ValueError: it does not fit, or is on it already: what a PaRa takes away is not there to be written down.
    """
    require_layers_present(model, clip, adapter)
    for name in adapter.targets():
        patcher = clip.patcher if clip is not None and name.startswith(TEXT_PREFIX) else model
        patches = [patch[1] for patch in patcher.patches.get(f"{name.removeprefix(TEXT_PREFIX)}.weight", ())]
        chains = [patch for patch in patches if isinstance(patch, StackWeightAdapter)]
        if chains and any(chain.removes(step.q) for chain in chains for step in adapter.weight_updates_of(name)
                          if isinstance(step, ProjectOut)):  # fmt: skip
            raise ValueError(
                "the model carries this adapter already (from Apply Adapter or Load LoRA), so that what its PaRa takes "
                "away is gone from it; connect the model as it was before"
            )


def warn_if_other_base(
    model: Any, clip: Any, adapter: AdapterStack, weight_of: WeightOf | None = None
) -> None:  # fmt: skip
    """Log a warning if the adapter was exported, or predicted, for other base weights than these.

    Args:
        model: the MODEL.
        clip: its CLIP, or None; then text-encoder layers are not compared.
        adapter: the adapter stack, with the records of its base in the metadata.
        weight_of: layer name -> base weight; by default :func:`base_weights` of ``model`` and ``clip``.

    Raises:
        ValueError: it is for another architecture.
    """
    if not recorded_fingerprints(adapter.metadata):
        return
    require_layers_present(model, clip, adapter)
    layers = [name for name in adapter.targets() if clip is not None or name.startswith(DIFFUSION_PREFIX)]
    if far := base_distance(adapter.metadata, weight_of or base_weights(model, clip), layers):
        what, instead = PREDICTED if is_predicted(adapter.metadata) else WRITTEN_DOWN
        logging.warning(
            "HyperBooth: the adapter %s for another base: the weights here differ from those recorded by %.1f %%, so "
            "that it will not do what it did there. Use %s", what, 100 * far, instead,
        )  # fmt: skip


def has_text_layers(adapter: AdapterStack) -> bool:
    """Whether the adapter changes the text encoder too."""
    return any(name.startswith(TEXT_PREFIX) for name in adapter.targets())


def _part(patches: dict[Any, Any], prefix: str, inside: bool) -> dict[Any, Any]:
    return {key: patch for key, patch in patches.items() if str(key).startswith(prefix) == inside}
