"""The U-Net and the text encoder as ComfyUI builds them, with numbers to begin a training from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .prompt_conditioning import telling_loss
from .tokenizer import Words, first_vectors

TELLING = 0.05
"""Weight of the text encoder's own loss."""


def beginning(module: nn.Module) -> nn.Module:
    """ComfyUI's layers come without numbers; these are PyTorch's own first ones."""
    for layer in module.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
    return module.requires_grad_(True)


class Base(nn.Module):
    """Noise estimate of noisy latents under tokens; state dict: `unet.`, `text.` as ComfyUI names them, and `rows`.

    Args:
        words: whose known tokens' vectors (`rows`) are trained.
    """

    def __init__(self, words: Words) -> None:
        super().__init__()
        import comfy.ops
        from comfy.clip_model import CLIPTextModel
        from comfy.ldm.modules.attention import attention_pytorch
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        from .family import CONTEXT, HEADS, TEXT, UNET

        ops = comfy.ops.disable_weight_init
        self.attention = attention_pytorch
        self.unet = beginning(UNetModel(**UNET, **HEADS, dtype=torch.float32, operations=ops))
        self.text = beginning(CLIPTextModel(TEXT, torch.float32, "cpu", ops).text_model)
        self.text.embeddings.token_embedding = None
        nn.init.normal_(self.text.embeddings.position_embedding.weight, std=0.05)
        vectors = first_vectors(CONTEXT)
        self.rows = nn.Parameter(vectors[words.known].clone())
        places = torch.full((len(vectors),), -1)
        places[words.known] = torch.arange(len(words.known))
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("places", places, persistent=False)
        for name, layer in self.unet.named_modules():
            if name.endswith(("out_layers.3", "proj_out", "out.2")):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def context(self, tokens: Tensor) -> Tensor:
        """[batch, 77] -> [batch, 77, width]: CLIP's text model; its own forward writes over what a gradient needs."""
        places = self.places[tokens]
        vectors = torch.where((places >= 0)[..., None], self.rows[places.clamp(min=0)], self.vectors[tokens])
        x = vectors + self.text.embeddings.position_embedding.weight
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu_(1)
        for layer in self.text.encoder.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), mask, self.attention)
            x = x + layer.mlp(layer.layer_norm2(x))
        return self.text.final_layer_norm(x)

    def strange(self, tokens: Tensor) -> Tensor:
        """[batch, 77, width]: vectors of the tokens that no caption holds, zero for all others."""
        return self.vectors[tokens] * (self.places[tokens] < 0)[..., None]

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, context=self.context(tokens))


def noise_levels() -> Tensor:
    """[1000] sigma of Stable Diffusion's schedule, as ComfyUI has it."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    remaining = torch.cumprod(1 - beta, 0)
    return ((1 - remaining) / remaining).sqrt().float()


def base_loss(base: Base, latents: Tensor, tokens: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor:
    """Mean of ``min(SNR, 5) / SNR |eps - eps_hat|^2`` (Hang et al. 2023, Min-SNR-gamma) over random noise levels.

    The text encoder's :func:`telling_loss` is added.
    """
    timesteps = torch.randint(len(sigmas), (len(latents),), generator=generator)
    sigma = sigmas[timesteps][:, None, None, None]
    noise = torch.randn(latents.shape, generator=generator)
    context = base.context(tokens)
    estimate = base.unet((latents + sigma * noise) / (sigma**2 + 1).sqrt(), timesteps, context=context)
    weight = (5 * sigma**2).clamp(max=1)
    told = telling_loss(context, tokens, base.strange(tokens))
    return (weight * (estimate - noise) ** 2).mean() + TELLING * told
