"""LoRA key formats of a loaded model: other tools' names of its layers, from ComfyUI's own key maps."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.utils

from ....models.adapters.targets import DIFFUSION_PREFIX, TEXT_PREFIX
from ....models.files.lora_import import KeyNames
from ....models.files.lora_key_formats import DIFFUSERS, KOHYA, PEFT, PROCESSOR, KeyName, KeyTarget
from ..model.layers import adaptable_layers, architecture, layer_shapes

_TRANSFORMERS = (
    comfy.model_base.SD3, comfy.model_base.Flux, comfy.model_base.AuraFlow, comfy.model_base.PixArt,
    comfy.model_base.QwenImage, comfy.model_base.Lumina2,
)  # fmt: skip
"""Models whose layers have the same names in diffusers as in ComfyUI's key map."""
_CLIP_LAYERS = "|".join(map(re.escape, comfy.lora.LORA_CLIP_MAP))
_CLIP_LAYER = re.compile(
    rf"{TEXT_PREFIX}(clip_[lgh])\.transformer\.(text_model\.encoder\.layers\.\d+\.(?:{_CLIP_LAYERS}))"
)
_T5_LAYER = re.compile(rf"{TEXT_PREFIX}t5xxl\.transformer\.(.+)")
_PROJECTION = re.compile(rf"{TEXT_PREFIX}clip_[lg]\.transformer\.(text_projection)")
_ATTENTION = re.compile(r"(.+)\.(to_[qkv]|to_out)(?:\.0)?")


def import_names(model: Any, clip: Any = None) -> KeyNames:
    """Return the LoRA keys that the stock loader accepts for ``model`` and ``clip``, and PEFT's for a U-Net."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    targets = {stem: target for stem, value in keys.items() if (target := _key_target(value)) is not None}
    for name, layer in _unet_names(model).items():
        targets |= {prefix + name: KeyTarget(layer) for prefix in ("", "unet.", "base_model.model.")}
    return KeyNames(targets, layer_shapes(adaptable_layers(model, clip)), architecture(model), clip is not None)


def export_names(model: Any, key_format: str, layers: Iterable[str]) -> dict[str, list[KeyName]]:
    """Return each layer's LoRA key, or the keys of its parts, in a key format.

    Args:
        model: the MODEL.
        key_format: ``kohya`` or ``diffusers``.
        layers: names of the layers of an adapter; those that the format has no key for are left out.
    """
    known = import_names(model)
    names_of = _kohya_names if key_format == "kohya" else _diffusers_names
    names = names_of(model, known)
    named = {layer: names[layer] for layer in layers if layer in names}
    text = {layer: _text_name(model, key_format, layer) for layer in layers if layer.startswith(TEXT_PREFIX)}
    return named | {layer: [name] for layer, name in text.items() if name is not None}


def _key_target(value: Any) -> KeyTarget | None:
    """Convert a value of ComfyUI's key map to a target, or None unless it is a weight.

    A value is ``key``, ``(key, (dimension, first, count))`` or ``(key, None, function)``.
    """
    key, part, function = (*value, None)[:3] if isinstance(value, tuple) else (value, None, None)
    if not key.endswith(".weight") or (function not in (None, comfy.utils.swap_scale_shift)):
        return None
    layer = key.removesuffix(".weight")
    rows = tuple(part[1:]) if part is not None else None
    return KeyTarget(layer if layer.startswith(DIFFUSION_PREFIX) else TEXT_PREFIX + layer, rows, function is not None)


def _unet_names(model: Any) -> dict[str, str]:
    """Return the target names of a U-Net's layers by diffusers' names; empty for other networks."""
    keys = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {
        name.removesuffix(".weight"): DIFFUSION_PREFIX + key.removesuffix(".weight")
        for name, key in keys.items() if name.endswith(".weight")
    }  # fmt: skip


def _kohya_names(model: Any, known: KeyNames) -> dict[str, list[KeyName]]:
    """Return kohya's keys: SD1 and SD2 by diffusers' layer names, SDXL and transformers by the original ones."""
    if _is_first_generation(model):
        stems = {layer: name for name, layer in _unet_names(model).items()}
    else:
        stems = {layer: layer.removeprefix(DIFFUSION_PREFIX) for layer in known.shapes}
    names = {layer: KeyName(f"lora_unet_{stem.replace('.', '_')}", KeyTarget(layer)) for layer, stem in stems.items()}
    return {layer: [name] for layer, name in names.items() if known.targets.get(name.stem) == name.target}


def _diffusers_names(model: Any, known: KeyNames) -> dict[str, list[KeyName]]:
    """Return diffusers' keys: for a U-Net those from before PEFT, for a transformer PEFT's.

    For U-Nets diffusers still reads the old keys, and ComfyUI reads no others: its key map has
    ``attn1.processor.to_q`` where PEFT has ``attn1.to_q``. diffusers converts a file only if it holds no PEFT key.
    """
    if unet := _unet_names(model):
        return {layer: [_unet_name(name, layer)] for name, layer in unet.items() if layer in known.shapes}
    if not isinstance(model.model, _TRANSFORMERS):
        return {}
    found: dict[str, dict[KeyTarget, KeyName]] = {}
    for stem, target in known.targets.items():
        if stem.startswith("transformer."):
            # If a layer has several names, ComfyUI lists Flux.1's before Flux.2's.
            names = found.setdefault(target.layer, {})
            if target not in names or isinstance(model.model, comfy.model_base.Flux2):
                names[target] = KeyName(stem, target, PEFT)
    complete = {layer: _cover(names, known.shapes[layer][0]) for layer, names in found.items() if layer in known.shapes}
    return {layer: names for layer, names in complete.items() if names}


def _unet_name(name: str, layer: str) -> KeyName:
    attention = _ATTENTION.fullmatch(name)
    if attention is None:
        return KeyName(f"unet.{name}", KeyTarget(layer), DIFFUSERS)
    return KeyName(f"unet.{attention[1]}.processor.{attention[2]}", KeyTarget(layer), PROCESSOR)


def _cover(names: Mapping[KeyTarget, KeyName], rows: int) -> list[KeyName]:
    """Return the names that cover all ``rows`` of a layer: names of its parts, or else one of the whole, or none."""
    parts = sorted((target.rows, name.stem, name) for target, name in names.items() if target.rows is not None)
    end = 0
    for (first, count), _, _ in parts:
        if first != end:
            break
        end += count
    if parts and end == rows:
        return [name for _, _, name in parts]
    return [name for target, name in names.items() if target.rows is None]


def _text_name(model: Any, key_format: str, layer: str) -> KeyName | None:
    """Return the key of a text encoder's layer, with the encoder's number (CLIP-L 1, CLIP-G 2, T5 3), or None."""
    encoder, stem = _text_part(model, layer)
    if stem is None:
        return None
    if key_format == "diffusers":
        component = {1: "text_encoder", 2: "text_encoder_2"}.get(encoder)
        readable = component is not None and not stem.startswith("text_projection")
        return KeyName(f"{component}.{stem}", KeyTarget(layer), PEFT) if readable else None
    unnumbered = _is_first_generation(model) and not stem.startswith("text_projection")
    return KeyName(f"lora_te{'' if unnumbered else encoder}_{stem.replace('.', '_')}", KeyTarget(layer), KOHYA)


def _text_part(model: Any, layer: str) -> tuple[int, str | None]:
    """Return the encoder's number and its own name of the layer, or ``(0, None)`` if the tools do not agree on them."""
    if isinstance(model.model, (comfy.model_base.SDXLRefiner, comfy.model_base.Chroma)):
        return 0, None
    if match := _CLIP_LAYER.fullmatch(layer):
        return (2 if match[1] == "clip_g" else 1), match[2]
    if match := _PROJECTION.fullmatch(layer):
        return (2 if ".clip_g." in layer else 1), match[1]
    if (match := _T5_LAYER.fullmatch(layer)) and isinstance(model.model, (comfy.model_base.SD3, comfy.model_base.Flux)):
        return 3, match[1]
    return 0, None


def _is_first_generation(model: Any) -> bool:
    """Return whether the model is an SD1 or SD2: a U-Net with one text encoder and no size conditioning (SDXL)."""
    later = (comfy.model_base.SDXL, comfy.model_base.SDXLRefiner)
    return bool(_unet_names(model)) and not isinstance(model.model, later)
