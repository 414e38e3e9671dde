"""Write small image encoders with random weights, in folders as on Hugging Face."""

from pathlib import Path
from typing import Any

import torch

from .import_pack import comfyui_path

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SMALL_CLIP_VISION: dict[str, Any] = {
    **SMALL, "model_type": "clip_vision_model", "hidden_act": "gelu", "num_channels": 3, "projection_dim": 16
}  # fmt: skip
"""Configuration for ComfyUI's own ``ClipVisionModel``: tokens ``[batch, 17, 32]``."""
SIZES: dict[str, Any] = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
"""Sizes of the preprocessing: shortest edge, then center crop, as for CLIP and DINOv2."""


def write_dino(folder: Path, seed: int = 0) -> Path:
    """Write an encoder in DINO's layout: a ViT, and its square preprocessing."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(seed)
    ViTModel(ViTConfig(**SMALL), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_dinov2(folder: Path, seed: int = 0) -> Path:
    """Write an encoder in DINOv2's layout."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    config = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    Dinov2Model(Dinov2Config(**config)).save_pretrained(folder)
    BitImageProcessor(**SIZES).save_pretrained(folder)
    return folder


def write_clip(folder: Path, seed: int = 0) -> Path:
    """Write an encoder in CLIP's layout, with its tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(seed)
    text = {name: value for name, value in SMALL.items() if name not in ("image_size", "patch_size")}
    config = CLIPConfig(text_config={**text, "vocab_size": 49408}, vision_config=dict(SMALL), projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(**SIZES).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(comfyui_path() / "comfy" / "sd1_tokenizer").save_pretrained(folder)
    return folder


BLOCK = 999_983
"""Number of random values, which are repeated; a prime, so that no two rows of a weight are equal."""


def write_clip_vision(path: Path, seed: int = 0) -> Path:
    """Write CLIP ViT-L/14's vision model, the smallest that the stock Load CLIP Vision recognizes (600 MB)."""
    import comfy.clip_vision
    from safetensors.torch import save_file

    folder = comfyui_path() / "comfy"
    model = comfy.clip_vision.ClipVisionModel(str(folder / "clip_vision_config_vitl.json")).model
    draw = torch.empty(BLOCK, dtype=torch.float16).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    tensors = {
        name: draw.repeat(-(-tensor.numel() // BLOCK))[: tensor.numel()].view(tensor.shape).contiguous()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
