"""Application of adapters to ComfyUI's models as weight patches, and the checks that go with it."""

import logging
from collections.abc import Mapping
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
from .lora_keys import import_names
from .weight_adapter import StackWeightAdapter

logger = logging.getLogger("hyperbooth")

EXPORTED = (
    "is a PaRa exported as a LoRA",
    "the adapter file in format 'hyperbooth', which fits every base, or the base it was exported from",
)
PREDICTED = "was predicted by a hypernetwork", "the base that the hypernetwork was trained on"
"""Why an adapter holds for one base only, and what to use instead."""


def apply_adapter(
    model: Any, clip: Any, adapter: AdapterStack, *, strength_model: float, strength_clip: float
) -> tuple[Any, Any]:
    """Return copies of MODEL and CLIP with the adapter's patches, as the stock loader would apply the saved file.

    Args:
        model: the MODEL.
        clip: the CLIP, or None to apply the diffusion model's part only.
        adapter: the adapter stack; its learned embeddings are added to the CLIP's tokenizer.
        strength_model: factor of the change of the diffusion model; 0 adds no patches.
        strength_clip: factor of the change of the text encoder; 0 adds no patches.

    Raises:
        ValueError: the model lacks a layer of the adapter, or the text encoder takes other vectors than its learned
            embeddings hold.
    """
    require_layers_present(model, clip, adapter)
    patches = _patches(model, clip, adapter)
    patched = model.clone()
    if strength_model:
        patched.add_patches(_select(patches, diffusion=True), strength_model)
    if clip is not None:
        clip = with_embeddings(clip.clone(), adapter.embeddings)
        if strength_clip:
            clip.add_patches(_select(patches, diffusion=False), strength_clip)
    return patched, clip


def _patches(model: Any, clip: Any, adapter: AdapterStack) -> dict[Any, Any]:
    """Return patches by ComfyUI's key; a single adapter whose file has stock tensor names becomes stock patches."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    if [part.family for part in adapter.adapters] in ([LoRA.family], [Full.family]):
        return comfy.lora.load_lora(comfyui_tensors(adapter), keys, log_missing=False)
    return {
        keys[name]: StackWeightAdapter.of(updates) for name, updates in adapter.weight_updates().items() if name in keys
    }


def require_layers_present(model: Any, clip: Any, adapter: AdapterStack) -> None:
    """Check that the model has every layer of the adapter, with the same weight shape.

    Args:
        model: the MODEL.
        clip: the CLIP, or None to leave out the adapter's text-encoder layers.
        adapter: the adapter stack.

    Raises:
        ValueError: a layer is missing or has another shape; the message holds both shapes. Or the names are those of
            another tool's key format.
    """
    shapes = layer_shapes(adaptable_layers(model, clip))
    require_own_names(model, clip, adapter)
    for name, target in adapter.targets().items():
        if name.startswith(TEXT_PREFIX) and clip is None:
            continue
        if shapes.get(name) != target.shape:
            has = shapes.get(name, "no such layer")
            raise ValueError(
                f"the adapter was trained on {adapter.metadata.get('base', 'another model')} and does not fit this "
                f"{architecture(model)}: {name} is {target.shape} in the adapter, {has} in the model"
            )


def require_own_names(model: Any, clip: Any, adapter: AdapterStack) -> None:
    """Check that the adapter names layers as ComfyUI does.

    Names of other tools may begin with ``diffusion_model.`` as ComfyUI's own do, and mean other layers: Z-Image's
    ``attention.to_q`` is a part of ComfyUI's ``attention.qkv``. Without a model, nothing tells them apart.

    Args:
        model: the MODEL.
        clip: the CLIP, or None.
        adapter: the adapter.

    Raises:
        ValueError: it has a name that only another tool's key format has.
    """
    layers = layer_shapes(adaptable_layers(model, clip))
    unknown = [name for name in adapter.targets() if name not in layers]
    foreign = [name for name in unknown if name in import_names(model, clip).targets] if unknown else []
    if foreign:
        raise ValueError(
            f"the adapter names {len(foreign)} layers in another tool's key format (such as {foreign[0]}), because it "
            "was loaded without a model; connect model to Load Adapter"
        )


def base_weights(model: Any, clip: Any = None) -> WeightOf:
    """Return a function from layer name to its weight in float32, including the patches of MODEL and CLIP.

    The function computes the weight that sampling would use, whether or not the patches are applied in place at the
    moment. It raises a ValueError for a text-encoder layer if ``clip`` is None.
    """

    def weight_of(name: str) -> Tensor:
        if name.startswith(TEXT_PREFIX) and clip is None:
            raise ValueError(f"clip is not connected, but {name} is a layer of the text encoder; connect it")
        patcher = clip.patcher if name.startswith(TEXT_PREFIX) else model
        return _weight(patcher, f"{name.removeprefix(TEXT_PREFIX)}.weight")

    return weight_of


def _weight(patcher: Any, key: str) -> Tensor:
    """Return the weight under ``key``: the loaded one, with the patches applied to a copy."""
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
    """Check that the adapter can be converted to a plain LoRA for this MODEL and CLIP.

    Args:
        model: the MODEL.
        clip: the CLIP, or None.
        adapter: the adapter stack.

    Raises:
        ValueError: a layer is missing, or the adapter is applied to the model already: the directions that its PaRa
            removes are then gone from the weights, and their LoRA form would be zero.
    """
    require_layers_present(model, clip, adapter)
    for name in adapter.targets():
        patcher = clip.patcher if clip is not None and name.startswith(TEXT_PREFIX) else model
        patches = [patch[1] for patch in patcher.patches.get(f"{name.removeprefix(TEXT_PREFIX)}.weight", ())]
        applied = [patch for patch in patches if isinstance(patch, StackWeightAdapter)]
        projections = (
            [update for update in adapter.weight_updates_of(name) if isinstance(update, ProjectOut)] if applied else []
        )
        if any(patch.removes(projection.q) for patch in applied for projection in projections):
            raise ValueError(
                "the model carries this adapter already (from Apply Adapter or Load LoRA), so the directions that its "
                "PaRa removes are gone from the weights; connect the model without it"
            )


def warn_if_other_base(model: Any, clip: Any, adapter: AdapterStack, weight_of: WeightOf | None = None) -> None:
    """Log a warning if the adapter was exported or predicted for other base weights than these.

    Args:
        model: the MODEL.
        clip: the CLIP, or None to compare the diffusion model's layers only.
        adapter: the adapter stack; without a recorded base nothing is compared.
        weight_of: layer name -> base weight; by default :func:`base_weights` of ``model`` and ``clip``.

    Raises:
        ValueError: the model lacks a layer of an adapter with a recorded base.
    """
    if not recorded_fingerprints(adapter.metadata):
        return
    require_layers_present(model, clip, adapter)
    layers = [name for name in adapter.targets() if clip is not None or name.startswith(DIFFUSION_PREFIX)]
    if distance := base_distance(adapter.metadata, weight_of or base_weights(model, clip), layers):
        reason, remedy = PREDICTED if is_predicted(adapter.metadata) else EXPORTED
        logger.warning(
            "the adapter %s for another base: the weights here differ from those recorded by %.1f %%, so its effect "
            "will differ. Use %s", reason, 100 * distance, remedy,
        )  # fmt: skip


def has_text_layers(adapter: AdapterStack) -> bool:
    """Return whether the adapter changes layers of the text encoder."""
    return any(name.startswith(TEXT_PREFIX) for name in adapter.targets())


def _select(patches: Mapping[Any, Any], *, diffusion: bool) -> dict[Any, Any]:
    """Return the patches of the diffusion model, or those of the text encoder."""
    return {key: patch for key, patch in patches.items() if str(key).startswith(DIFFUSION_PREFIX) == diffusion}
