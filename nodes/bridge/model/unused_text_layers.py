"""Layers of text encoders that do not affect the conditioning: unused projections, and those after a skip.

CLIP-L's projection of the pooled state is such a layer in SD1.5 and SDXL. Most checkpoints lack it, and ComfyUI then
leaves its weight uninitialized: it may hold any value, NaN included, so nothing may read or train it.
"""

from typing import Any

from comfy.sd1_clip import SD1ClipModel, SDClipModel
from comfy.sdxl_clip import SDXLClipModel

PROJECTION = "transformer.text_projection"
_WITHOUT_POOLED = ("clip_l", "clip_h")
"""Encoders whose pooled state SD1.5, SD2 and SDXL ignore."""


def unused_text_layers(clip: Any) -> set[str]:
    """Return the names of the unused layers in ``clip.cond_stage_model``."""
    encoder = clip.cond_stage_model
    ignores_pooled = isinstance(encoder, (SD1ClipModel, SDXLClipModel))
    return {
        f"{name}.{PROJECTION}"
        for name, part in encoder.named_children()
        if isinstance(part, SDClipModel)
        and (not part.return_projected_pooled or (ignores_pooled and name in _WITHOUT_POOLED))
    }


def skipped_text_layers(clip: Any) -> tuple[str, ...]:
    """Return the prefixes of the layers in ``clip.cond_stage_model`` that come after the one whose output is used.

    That is one before the last with CLIP Set Last Layer at -2, and by itself in SDXL's CLIP-L. An encoder whose pooled
    state is used needs all of its layers.
    """
    encoder = clip.cond_stage_model
    ignores_pooled = isinstance(encoder, (SD1ClipModel, SDXLClipModel))
    found = []
    for name, part in encoder.named_children():
        if not isinstance(part, SDClipModel) or not hasattr(part.transformer, "text_model"):
            continue
        index, count = _used_layer(part, clip.layer_idx), part.num_layers
        pooled = not (ignores_pooled and name in _WITHOUT_POOLED)
        if index is not None and not pooled:
            layers = range(index % count + 1, count)
            found += [f"{name}.transformer.text_model.encoder.layers.{layer}." for layer in layers]
    return tuple(found)


def _used_layer(part: Any, skip: int | None) -> int | None:
    """Return the index of the layer whose output is used, or None for the last, by ComfyUI's own rules."""
    _, layer, _ = part.options_default
    layer = layer if skip is None else skip
    return None if layer is None or not isinstance(layer, int) or abs(layer) > part.num_layers else layer
