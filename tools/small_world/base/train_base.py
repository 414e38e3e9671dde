"""Train the U-Net and its text encoder on the autoencoder's latents."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..pretraining.loop import Plan, Training
from ..pretraining.stream import example
from .autoencoder import Autoencoder
from .latents import make
from .network import Base, base_loss, noise_levels
from .tokenizer import CaptionTokenizer

BATCH = 64
EXAMPLES = 100_000
UNCONDITIONAL = 0.1
"""Fraction of examples with an empty prompt, for classifier-free guidance."""
SKETCH_EVERY = 6
"""One in so many examples of a batch is an additional sketch, the style that is learned last."""
PLAN = Plan(steps=17_600, rate=1e-2, warmup=100, average=0.998)


def train(folder: Path, autoencoder: Autoencoder, plan: Plan = PLAN, examples: int = EXAMPLES) -> Base:
    """Train the base; its state is in `folder`, and an unfinished training there is resumed."""
    tokenizer = CaptionTokenizer()
    latents, tokens = make(folder / "latents", autoencoder, tokenizer, examples)
    torch.manual_seed(0)
    base, sigmas = Base(tokenizer), noise_levels()
    empty_prompt = torch.tensor(tokenizer.padded(tokenizer.ids("")))
    sketches = torch.tensor([number for number in range(examples) if example(number).scene.style == "sketch"])

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(examples, (BATCH,), generator=generator)
        more = BATCH // SKETCH_EVERY
        chosen[:more] = sketches[torch.randint(len(sketches), (more,), generator=generator)]
        shown = tokens[chosen].long()
        shown[torch.rand(BATCH, generator=generator) < UNCONDITIONAL] = empty_prompt
        return base_loss(base, latents[chosen].float(), shown, sigmas, generator)

    return Training(base, plan, folder / "base.safetensors").run(loss_of).eval()
