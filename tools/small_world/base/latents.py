"""Compute the U-Net's training data once: latents and tokens of many examples, cached on disk in parts."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..pretraining.stream import example
from ..weight_files import digest, write
from .autoencoder import Autoencoder
from .tokenizer import CaptionTokenizer

PART = 5000
"""Examples per file."""
AT_ONCE = 100


def make(folder: Path, autoencoder: Autoencoder, tokenizer: CaptionTokenizer, count: int) -> tuple[Tensor, Tensor]:
    """Return latents [count, channels, 8, 8] and tokens [count, 77]; use the parts cached in `folder`."""
    parts, of = [], digest(autoencoder.state_dict())
    for start in range(0, count, PART):
        path = folder / f"{of}_{start}.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write(_part(autoencoder, tokenizer, start), path)
            print(f"latents of {start + PART} examples", flush=True)
        parts.append(load_file(path))
    return torch.cat([p["latents"] for p in parts])[:count], torch.cat([p["tokens"] for p in parts])[:count]


@torch.no_grad()
def _part(autoencoder: Autoencoder, tokenizer: CaptionTokenizer, start: int) -> dict[str, Tensor]:
    latents, tokens = [], []
    for first in range(start, start + PART, AT_ONCE):
        examples = [example(number) for number in range(first, first + AT_ONCE)]
        images = torch.stack([torch.from_numpy(e.image()) for e in examples]).permute(0, 3, 1, 2).float() / 255
        latents.append(autoencoder.encode(images).half())
        tokens += [tokenizer.of_example(e.caption, number) for number, e in enumerate(examples, first)]
    return {"latents": torch.cat(latents).contiguous(), "tokens": torch.tensor(tokens, dtype=torch.int32)}
