"""Build the U-Net and the text encoder as ComfyUI does, with initial parameters for training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .prompt_conditioning import rare_token_loss
from .tokenizer import CaptionTokenizer, initial_vectors

RARE_TOKEN_WEIGHT = 0.05
"""Weight of the text encoder's auxiliary loss."""


def initialize(module: nn.Module) -> nn.Module:
    """Initialize ComfyUI's layers, which come uninitialized, as PyTorch does."""
    for layer in module.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
    return module.requires_grad_(True)


class Base(nn.Module):
    """Estimate the noise of noisy latents given tokens; state dict: `unet.`, `text.` as ComfyUI names them, and `rows`.

    Args:
        tokenizer: the vectors of its known tokens (`rows`) are trained.
    """

    def __init__(self, tokenizer: CaptionTokenizer) -> None:
        super().__init__()
        import comfy.ops
        from comfy.clip_model import CLIPTextModel
        from comfy.ldm.modules.attention import attention_pytorch
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        from .family import CONTEXT, HEADS, TEXT, UNET

        ops = comfy.ops.disable_weight_init
        self.attention = attention_pytorch
        self.unet = initialize(UNetModel(**UNET, **HEADS, dtype=torch.float32, operations=ops))
        self.text = initialize(CLIPTextModel(TEXT, torch.float32, "cpu", ops).text_model)
        self.text.embeddings.token_embedding = None
        nn.init.normal_(self.text.embeddings.position_embedding.weight, std=0.05)
        vectors = initial_vectors(CONTEXT)
        self.rows = nn.Parameter(vectors[tokenizer.known].clone())
        row_of_token = torch.full((len(vectors),), -1)
        row_of_token[tokenizer.known] = torch.arange(len(tokenizer.known))
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("places", row_of_token, persistent=False)
        for name, layer in self.unet.named_modules():
            if name.endswith(("out_layers.3", "proj_out", "out.2")):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def context(self, tokens: Tensor) -> Tensor:
        """Run CLIP's text model, [batch, 77] -> [batch, 77, width]; its own forward modifies activations in place."""
        rows = self.places[tokens]
        vectors = torch.where((rows >= 0)[..., None], self.rows[rows.clamp(min=0)], self.vectors[tokens])
        x = vectors + self.text.embeddings.position_embedding.weight
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu_(1)
        for layer in self.text.encoder.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), mask, self.attention)
            x = x + layer.mlp(layer.layer_norm2(x))
        return self.text.final_layer_norm(x)

    def rare_token_vectors(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens that occur in no caption, zero for all others, [batch, 77, width]."""
        return self.vectors[tokens] * (self.places[tokens] < 0)[..., None]

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, context=self.context(tokens))


def noise_levels() -> Tensor:
    """Return the sigmas of Stable Diffusion's schedule as in ComfyUI, [1000]."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    remaining = torch.cumprod(1 - beta, 0)
    return ((1 - remaining) / remaining).sqrt().float()


def base_loss(base: Base, latents: Tensor, tokens: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean of ``min(SNR, 5) / SNR |eps - eps_hat|^2`` over random noise levels.

    The weighting is Min-SNR-gamma (Hang et al. 2023). The text encoder's :func:`rare_token_loss` is added.
    """
    timesteps = torch.randint(len(sigmas), (len(latents),), generator=generator)
    sigma = sigmas[timesteps][:, None, None, None]
    noise = torch.randn(latents.shape, generator=generator)
    context = base.context(tokens)
    estimate = base.unet((latents + sigma * noise) / (sigma**2 + 1).sqrt(), timesteps, context=context)
    weight = (5 * sigma**2).clamp(max=1)
    auxiliary = rare_token_loss(context, tokens, base.rare_token_vectors(tokens))
    return (weight * (estimate - noise) ** 2).mean() + RARE_TOKEN_WEIGHT * auxiliary
