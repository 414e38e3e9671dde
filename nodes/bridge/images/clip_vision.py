"""Tokens and embeddings of pictures, by a loaded CLIP_VISION."""

from typing import Any

import comfy.clip_model
import comfy.model_management
import torch
from torch import Tensor

from ....models.hypernetwork.predictor import BaseModelRef
from ....models.metadata.base_fingerprint import fingerprint
from ....models.metrics.scores import all_finite

BATCH_SIZE = 4
"""Pictures that go through it together: 729 tokens of SigLIP's in all 27 layers are 90 MB each in float32, and ComfyUI
holds them twice."""


def image_tokens(vision: Any, pictures: Tensor) -> Tensor:
    """``[n, tokens, width]`` in float32 on the CPU of pictures ``[n, H, W, C]`` in [0, 1], free of inference mode.

    The last layer but one, as IP-Adapter takes them: nothing in CLIP's training asks the last one's patches for
    anything.

    Raises:
        ValueError: the encoder gives no tokens, or such as are no numbers.
    """
    colours = pictures[..., :3] if pictures.shape[-1] >= 3 else pictures[..., :1].expand(*pictures.shape[:-1], 3)
    rows = []
    for some in colours.split(BATCH_SIZE):
        tokens, _ = encode_images(vision, some)
        if tokens is None or tokens.ndim != 3:
            raise ValueError(
                f"clip_vision is a {vision.model_type} that gives no tokens; connect a CLIP, SigLIP or DINO"
            )
        rows.append(tokens.to("cpu", torch.float32))
    found = torch.cat(rows)
    if not all_finite(found):
        raise ValueError("clip_vision gave tokens that are no numbers; its file may be damaged")
    with torch.inference_mode(False):
        return found.clone()


@torch.inference_mode()
def encode_images(vision: Any, pictures: Tensor) -> tuple[Tensor | None, Tensor]:
    """Tokens ``[n, tokens, width]`` of the last layer but one, and embeddings, of pictures ``[n, H, W, 3]``.

    DINOv3 gives those of the last layer, and ComfyUI's own ``encode_image`` fails for want of others.
    """
    if vision.model_type != "dinov3":
        output = vision.encode_image(pictures)
        return output.penultimate_hidden_states, output.image_embeds
    comfy.model_management.load_model_gpu(vision.patcher)
    pixels = comfy.clip_model.clip_preprocess(
        pictures.to(vision.load_device), size=vision.image_size, mean=vision.image_mean, std=vision.image_std
    )
    tokens, _, embedding, _ = vision.model(pixel_values=pixels.float())
    return tokens, embedding


def encoder_ref(vision: Any) -> BaseModelRef:
    """What the encoder is."""
    weights = {name: weight for name, weight in vision.model.state_dict().items() if weight.is_floating_point()}
    kind = f"{vision.model_type}, width {vision.config.get('hidden_size', '?')}"
    return BaseModelRef(kind, fingerprint(list(weights), lambda name: weights[name].float()))
