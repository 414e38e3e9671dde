"""Define an auxiliary loss by which the text encoder's end-of-text outputs encode rare tokens.

CLIP's contrastive training has this effect. Without it the encoder ignores a rare token, "a sks face" and "a face"
have nearly the same encoding, and no training with prior preservation can separate the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tokenizer import END, SPREAD

CODE_SIZE = 16
"""Size of the code of a rare token that the end-of-text outputs predict."""


def _directions(width: int, seed: int) -> Tensor:
    """Return orthonormal columns, [width, CODE_SIZE]."""
    return torch.linalg.qr(torch.randn(width, CODE_SIZE, generator=torch.Generator().manual_seed(seed)))[0]


def rare_token_loss(context: Tensor, tokens: Tensor, rare_vectors: Tensor) -> Tensor:
    """Return the mean of ``|R' c - P' v / deviation|^2``: the error of the code that the end-of-text outputs predict.

    c is the mean of `context` [batch, 77, width] over the end-of-text tokens, v the sum of `rare_vectors`
    [batch, 77, width] (zero for known tokens); R and P are fixed, random and orthonormal.
    """
    ends = (tokens == END)[..., None].to(context.dtype)
    predicted = ((context * ends).sum(1) / ends.sum(1)) @ _directions(context.shape[-1], 1)
    return (predicted - rare_vectors.sum(1) / SPREAD @ _directions(context.shape[-1], 2)).square().mean()
