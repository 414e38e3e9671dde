"""The names that other tools give a model's layers, from ComfyUI's own maps."""

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

KEY_FORMATS = ("kohya", "diffusers")

# The families whose layers diffusers' own models name as ComfyUI's map says.
_TRANSFORMERS = (
    comfy.model_base.SD3, comfy.model_base.Flux, comfy.model_base.AuraFlow, comfy.model_base.PixArt,
    comfy.model_base.QwenImage, comfy.model_base.Lumina2,
)  # fmt: skip
_CLIP_LAYERS = "|".join(map(re.escape, comfy.lora.LORA_CLIP_MAP))
_CLIP_LAYER = re.compile(
    rf"{TEXT_PREFIX}(clip_[lgh])\.transformer\.(text_model\.encoder\.layers\.\d+\.(?:{_CLIP_LAYERS}))"
)
_T5_LAYER = re.compile(rf"{TEXT_PREFIX}t5xxl\.transformer\.(.+)")
_PROJECTION = re.compile(rf"{TEXT_PREFIX}clip_[lg]\.transformer\.(text_projection)")
_ATTENTION = re.compile(r"(.+)\.(to_[qkv]|to_out)(?:\.0)?")


def import_names(model: Any, clip: Any = None) -> KeyNames:
    """Every name that the stock loader understands for ``model`` and ``clip``, and PEFT's for a U-Net."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    places = {stem: place for stem, value in keys.items() if (place := _place(value)) is not None}
    for name, layer in _unet_names(model).items():
        places |= {prefix + name: KeyTarget(layer) for prefix in ("", "unet.", "base_model.model.")}
    return KeyNames(places, layer_shapes(adaptable_layers(model, clip)), architecture(model), clip is not None)


def export_names(model: Any, dialect: str, layers: Iterable[str]) -> dict[str, list[KeyName]]:
    """Layer -> its name, or the names of its parts, in a file of ``dialect``; without those it cannot name."""
    known = import_names(model)
    write = _kohya_names if dialect == "kohya" else _diffusers_names
    written = write(model, known)
    named = {layer: written[layer] for layer in layers if layer in written}
    text = {layer: _text_name(model, dialect, layer) for layer in layers if layer.startswith(TEXT_PREFIX)}
    return named | {layer: [name] for layer, name in text.items() if name is not None}


def _place(value: Any) -> KeyTarget | None:
    """ComfyUI's ``key``, ``(key, (dimension, first, count))`` or ``(key, None, function)``; weights only."""
    key, part, function = (*value, None)[:3] if isinstance(value, tuple) else (value, None, None)
    if not key.endswith(".weight") or (function not in (None, comfy.utils.swap_scale_shift)):
        return None
    layer = key.removesuffix(".weight")
    rows = tuple(part[1:]) if part is not None else None
    return KeyTarget(layer if layer.startswith(DIFFUSION_PREFIX) else TEXT_PREFIX + layer, rows, function is not None)


def _unet_names(model: Any) -> dict[str, str]:
    """diffusers' name of a U-Net's layer -> ours; empty for other networks."""
    keys = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {
        name.removesuffix(".weight"): DIFFUSION_PREFIX + key.removesuffix(".weight")
        for name, key in keys.items() if name.endswith(".weight")
    }  # fmt: skip


def _kohya_names(model: Any, known: KeyNames) -> dict[str, list[KeyName]]:
    """SD1 and SD2 by diffusers' names, SDXL and transformers by the original ones."""
    if _is_first_generation(model):
        stems = {layer: name for name, layer in _unet_names(model).items()}
    else:
        stems = {layer: layer.removeprefix(DIFFUSION_PREFIX) for layer in known.shapes}
    names = {layer: KeyName(f"lora_unet_{stem.replace('.', '_')}", KeyTarget(layer)) for layer, stem in stems.items()}
    return {layer: [name] for layer, name in names.items() if known.targets.get(name.stem) == name.target}


def _diffusers_names(model: Any, known: KeyNames) -> dict[str, list[KeyName]]:
    """A U-Net's names as diffusers wrote them before PEFT: it still reads them, and ComfyUI reads no others there.

    ComfyUI's map has ``attn1.processor.to_q`` where PEFT has ``attn1.to_q``; and diffusers converts a file only if
    none of it is in PEFT's spelling.
    """
    if unet := _unet_names(model):
        return {layer: [_unet_name(name, layer)] for name, layer in unet.items() if layer in known.shapes}
    if not isinstance(model.model, _TRANSFORMERS):
        return {}
    found: dict[str, dict[KeyTarget, KeyName]] = {}
    for stem, place in known.targets.items():
        if stem.startswith("transformer."):
            # Where a layer has several names, ComfyUI lists Flux.1's before Flux.2's.
            names = found.setdefault(place.layer, {})
            if place not in names or isinstance(model.model, comfy.model_base.Flux2):
                names[place] = KeyName(stem, place, PEFT)
    complete = {layer: _cover(names, known.shapes[layer][0]) for layer, names in found.items() if layer in known.shapes}
    return {layer: names for layer, names in complete.items() if names}


def _unet_name(name: str, layer: str) -> KeyName:
    attention = _ATTENTION.fullmatch(name)
    if attention is None:
        return KeyName(f"unet.{name}", KeyTarget(layer), DIFFUSERS)
    return KeyName(f"unet.{attention[1]}.processor.{attention[2]}", KeyTarget(layer), PROCESSOR)


def _cover(names: Mapping[KeyTarget, KeyName], rows: int) -> list[KeyName]:
    """The names that together stand for all ``rows`` of a layer: parts before a name of the whole; or none."""
    parts = sorted((place.rows, name.stem, name) for place, name in names.items() if place.rows is not None)
    end = 0
    for (first, count), _, _ in parts:
        if first != end:
            break
        end += count
    if parts and end == rows:
        return [name for _, _, name in parts]
    return [name for place, name in names.items() if place.rows is None]


def _text_name(model: Any, dialect: str, layer: str) -> KeyName | None:
    """A text encoder's layer; its place in the family is its number: CLIP-L 1, CLIP-G 2, T5 3."""
    encoder, stem = _text_part(model, layer)
    if stem is None:
        return None
    if dialect == "diffusers":
        place = {1: "text_encoder", 2: "text_encoder_2"}.get(encoder)
        readable = place is not None and not stem.startswith("text_projection")
        return KeyName(f"{place}.{stem}", KeyTarget(layer), PEFT) if readable else None
    alone = _is_first_generation(model) and not stem.startswith("text_projection")
    return KeyName(f"lora_te{'' if alone else encoder}_{stem.replace('.', '_')}", KeyTarget(layer), KOHYA)


def _text_part(model: Any, layer: str) -> tuple[int, str | None]:
    """``(number of the encoder, layer in its own names)``, or ``(0, None)`` where tools do not agree on either."""
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
    """SD1 and SD2: a U-Net with one text encoder. SDXL's has a vector of sizes beside the text."""
    later = (comfy.model_base.SDXL, comfy.model_base.SDXLRefiner)
    return bool(_unet_names(model)) and not isinstance(model.model, later)
