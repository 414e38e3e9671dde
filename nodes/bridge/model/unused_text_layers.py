"""Layers of text encoders that do not affect the conditioning.

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
