"""Train the encoder so that identity and scene can be read from its tokens and from its embedding."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..oracle.batches import ahead
from ..oracle.network import Readout, reading_loss
from ..oracle.questions import QUESTIONS
from ..pretraining.loop import Plan, Training
from .encoder import CONFIG

BATCH = 128
FIRST = 20_000_000
"""Index in the stream of the encoder's first image; base and oracle use none of its images."""
PLAN = Plan(steps=2500, rate=3e-3, average=0.998)


class Reader(nn.Module):
    """Train the encoder with two heads that are used in training only."""

    def __init__(self) -> None:
        super().__init__()
        import comfy.ops
        from comfy.clip_model import CLIPVisionModelProjection
        from comfy.ldm.modules.attention import attention_pytorch

        from ..base.network import initialize

        network = CLIPVisionModelProjection(CONFIG, torch.float32, "cpu", comfy.ops.disable_weight_init)
        self.attention, self.encoder = attention_pytorch, initialize(network)
        embeddings = self.encoder.vision_model.embeddings
        nn.init.normal_(embeddings.class_embedding, std=0.02)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
        self.of_tokens = Readout(QUESTIONS, CONFIG["hidden_size"], 256)
        self.of_embedding = Readout(QUESTIONS, CONFIG["projection_dim"], 256)
        self.register_buffer("mean", torch.tensor(CONFIG["image_mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CONFIG["image_std"])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return readings of the penultimate tokens and of the embedding of images [batch, 3, 64, 64]."""
        tokens, embedding = self.encoded((images - self.mean) / self.std)
        return self.of_tokens(tokens[:, 1:]), self.of_embedding(embedding[:, None])

    def encoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return penultimate tokens and embedding; ComfyUI's own forward modifies activations in place."""
        vision = self.encoder.vision_model
        x = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer in vision.encoder.layers:
            before = x
            x = x + layer.self_attn(layer.layer_norm1(x), None, self.attention)
            x = x + layer.mlp(layer.layer_norm2(x))
        return before, self.encoder.visual_projection(vision.post_layernorm(x[:, 0]))


def train(folder: Path, plan: Plan = PLAN) -> nn.Module:
    """Train the encoder; its state is in `folder`, and an unfinished training there is resumed."""
    torch.manual_seed(0)
    reader = Reader()
    batch_at = ahead(FIRST, BATCH)

    def loss_of(step: int) -> Tensor:
        images, true, shown = batch_at(step)
        return sum(reading_loss(QUESTIONS, outputs, true, shown) for outputs in reader(images))

    Training(reader, plan, folder / "vision.safetensors").run(loss_of)
    return reader.encoder.eval()
