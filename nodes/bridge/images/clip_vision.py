"""Tokens and embeddings of images, by a loaded CLIP_VISION."""

from typing import Any

import comfy.clip_model
import comfy.model_management
import torch
from torch import Tensor

from ....models.hypernetwork.predictor import BaseModelRef
from ....models.metadata.base_fingerprint import fingerprint
from ....models.metrics.scores import all_finite

BATCH_SIZE = 4
"""Images per forward pass: 729 tokens of SigLIP's in all 27 layers are 90 MB per image in float32, and ComfyUI holds
them twice."""


def image_tokens(vision: Any, images: Tensor) -> Tensor:
    """Encode images to the tokens of the penultimate layer.

    IP-Adapter uses this layer too: nothing in CLIP's training depends on the last layer's patch tokens.

    Args:
        vision: the CLIP_VISION.
        images: ``[n, H, W, C]`` in [0, 1]; of 1 or 2 channels the first is repeated, an alpha channel is dropped.

    Returns:
        ``[n, tokens, width]`` in float32 on the CPU, not an inference tensor.

    Raises:
        ValueError: the encoder returns no tokens, or NaN or infinite values.
    """
    rgb = images[..., :3] if images.shape[-1] >= 3 else images[..., :1].expand(*images.shape[:-1], 3)
    batches = []
    for batch in rgb.split(BATCH_SIZE):
        tokens, _ = encode_images(vision, batch)
        if tokens is None or tokens.ndim != 3:
            raise ValueError(
                f"clip_vision is a {vision.model_type} that gives no tokens; connect a CLIP, SigLIP or DINO"
            )
        batches.append(tokens.to("cpu", torch.float32))
    all_tokens = torch.cat(batches)
    if not all_finite(all_tokens):
        raise ValueError("clip_vision returned NaN or infinite tokens; its file may be damaged")
    with torch.inference_mode(False):
        return all_tokens.clone()


@torch.inference_mode()
def encode_images(vision: Any, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """Encode images ``[n, H, W, 3]`` to tokens ``[n, tokens, width]`` of the penultimate layer, and embeddings.

    DINOv3 returns the tokens of its last layer only; ComfyUI's own ``encode_image`` fails without the others.
    """
    if vision.model_type != "dinov3":
        output = vision.encode_image(images)
        return output.penultimate_hidden_states, output.image_embeds
    comfy.model_management.load_model_gpu(vision.patcher)
    pixels = comfy.clip_model.clip_preprocess(
        images.to(vision.load_device), size=vision.image_size, mean=vision.image_mean, std=vision.image_std
    )
    tokens, _, embedding, _ = vision.model(pixel_values=pixels.float())
    return tokens, embedding


def encoder_ref(vision: Any) -> BaseModelRef:
    """Return the reference by which files name this encoder: its kind, and sampled values of its weights."""
    weights = {name: weight for name, weight in vision.model.state_dict().items() if weight.is_floating_point()}
    kind = f"{vision.model_type}, width {vision.config.get('hidden_size', '?')}"
    return BaseModelRef(kind, fingerprint(list(weights), lambda name: weights[name].float()))
