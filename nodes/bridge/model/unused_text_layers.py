"""Layers of text encoders that reach no prompt.

CLIP-L's projection of the pooled state is such a layer in SD1.5 and SDXL. Most checkpoints do not hold it, and
ComfyUI leaves it as the memory was: any number, NaN too. So nothing may read it or train it.
"""

from typing import Any

from comfy.sd1_clip import SD1ClipModel, SDClipModel
from comfy.sdxl_clip import SDXLClipModel

PROJECTION = "transformer.text_projection"
_WITHOUT_POOLED = ("clip_l", "clip_h")
"""Encoders whose pooled state SD1.5, SD2 and SDXL leave out."""


def unused_text_layers(clip: Any) -> set[str]:
    """Their names in ``clip.cond_stage_model``."""
    encoder = clip.cond_stage_model
    leaves_out = isinstance(encoder, (SD1ClipModel, SDXLClipModel))
    return {
        f"{name}.{PROJECTION}"
        for name, part in encoder.named_children()
        if isinstance(part, SDClipModel)
        and (not part.return_projected_pooled or (leaves_out and name in _WITHOUT_POOLED))
    }
