"""Tokens of pictures, by a loaded CLIP_VISION."""

from typing import Any

import torch
from torch import Tensor

from ...models.predictor import Made
from ...models.provenance import sample_of
from ...models.scores import all_finite


def tokens_of(vision: Any, pictures: Tensor) -> Tensor:
    """``[n, tokens, width]`` in float32 on the CPU of pictures ``[n, H, W, C]`` in [0, 1], free of inference mode.

    The last layer but one, as IP-Adapter takes them: nothing in CLIP's training asks the last one's patches for
    anything.

    Raises:
        ValueError: the encoder gives no tokens, or such as are no numbers.
    """
    colours = pictures[..., :3] if pictures.shape[-1] >= 3 else pictures[..., :1].expand(*pictures.shape[:-1], 3)
    with torch.inference_mode():
        tokens = vision.encode_image(colours).penultimate_hidden_states
    if tokens is None or tokens.ndim != 3:
        raise ValueError(f"clip_vision is a {vision.model_type} that gives no tokens; connect a CLIP, SigLIP or DINO")
    if not all_finite(tokens):
        raise ValueError("clip_vision gave tokens that are no numbers; its file may be damaged")
    with torch.inference_mode(False):
        return tokens.to("cpu", torch.float32, copy=True).clone()


def encoder_of(vision: Any) -> Made:
    """What the encoder is."""
    weights = {name: weight for name, weight in vision.model.state_dict().items() if weight.is_floating_point()}
    kind = f"{vision.model_type}, width {vision.config.get('hidden_size', '?')}"
    return Made(kind, sample_of(list(weights), lambda name: weights[name].float()))
