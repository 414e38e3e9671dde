"""What contrastive training gave CLIP's text encoder: the end of a text tells its words apart, strange ones too.

Without it the encoder passes over a strange word, "a sks face" and "a face" come out nearly the same, and no training
with prior preservation can keep the two apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tokenizer import END, SPREAD

TOLD = 16
"""Numbers of a strange word that the end of its text tells."""


def _directions(width: int, seed: int) -> Tensor:
    """[width, TOLD] orthonormal columns."""
    return torch.linalg.qr(torch.randn(width, TOLD, generator=torch.Generator().manual_seed(seed)))[0]


def telling_loss(context: Tensor, tokens: Tensor, strange: Tensor) -> Tensor:
    """Mean of ``|R' c - P' v / deviation|^2``: what the end of the text says of the strange word in it.

    c is the mean of `context` [batch, 77, width] over the marks of the end, v the sum of the vectors `strange`
    [batch, 77, width] (zero where a token is known); R and P are fixed, random and orthonormal.
    """
    ends = (tokens == END)[..., None].to(context.dtype)
    said = ((context * ends).sum(1) / ends.sum(1)) @ _directions(context.shape[-1], 1)
    return (said - strange.sum(1) / SPREAD @ _directions(context.shape[-1], 2)).square().mean()
