"""What the U-Net trains on: latents and tokens of many examples, made once and kept on disk in parts."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..pretraining.stream import example
from ..weight_files import digest, write
from .autoencoder import Autoencoder
from .tokenizer import Words

PART = 5000
"""Examples in a file."""
AT_ONCE = 100


def make(folder: Path, autoencoder: Autoencoder, words: Words, count: int) -> tuple[Tensor, Tensor]:
    """([count, channels, 8, 8] float16, [count, 77] int32); parts that `folder` has of it already are read."""
    parts, of = [], digest(autoencoder.state_dict())
    for start in range(0, count, PART):
        path = folder / f"{of}_{start}.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write(_part(autoencoder, words, start), path)
            print(f"latents of {start + PART} examples", flush=True)
        parts.append(load_file(path))
    return torch.cat([p["latents"] for p in parts])[:count], torch.cat([p["tokens"] for p in parts])[:count]


@torch.no_grad()
def _part(autoencoder: Autoencoder, words: Words, start: int) -> dict[str, Tensor]:
    latents, tokens = [], []
    for first in range(start, start + PART, AT_ONCE):
        examples = [example(number) for number in range(first, first + AT_ONCE)]
        images = torch.stack([torch.from_numpy(e.image()) for e in examples]).permute(0, 3, 1, 2).float() / 255
        latents.append(autoencoder.encode(images).half())
        tokens += [words.of_example(e.caption, number) for number, e in enumerate(examples, first)]
    return {"latents": torch.cat(latents).contiguous(), "tokens": torch.tensor(tokens, dtype=torch.int32)}
