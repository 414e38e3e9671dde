"""Tokenize captions. Only vectors of their tokens are trained; all others keep their random initial values."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..random_draws import mix
from ..scene.captions import NOUNS, WORDINGS

TOKENS = 77
END = 49407
"""The end-of-text token, which also pads to TOKENS."""
VOCABULARY = 49408
SPREAD = 0.3
"""Standard deviation of a token's initial vector."""
RARE_TOKEN_RATE = 0.15
"""Probability that a caption has a rare token before its noun: the base learns to ignore it, and a person's
identifier is such a token."""
RARE_TOKENS = range(1000, 40000)
"""Range from which rare tokens are drawn."""


def initial_vectors(width: int) -> Tensor:
    """Return the initial vectors, the same on every machine, [VOCABULARY, width]."""
    return SPREAD * torch.randn(VOCABULARY, width, generator=torch.Generator().manual_seed(0))


class CaptionTokenizer:
    """Tokenize captions by ComfyUI's own tokenizer for SD1.5."""

    def __init__(self) -> None:
        from comfy.sd1_clip import SDTokenizer

        self.tokenizer: Any = SDTokenizer().tokenizer

    def ids(self, text: str) -> list[int]:
        """Return the token ids, with start-of-text and end-of-text."""
        return self.tokenizer(text)["input_ids"]

    def padded(self, ids: list[int]) -> list[int]:
        """Pad the ids to TOKENS with end-of-text, as ComfyUI does."""
        return (ids + [ids[-1]] * TOKENS)[:TOKENS]

    def of_example(self, caption: str, number: int) -> list[int]:
        """Return the tokens of example `number`, sometimes with a rare token among them."""
        ids, draw = self.ids(caption), mix(number ^ 0x57A46E)
        if draw % 1000 < 1000 * RARE_TOKEN_RATE:
            at = next(at for at, token in enumerate(ids) if token in self._nouns)
            ids.insert(at, RARE_TOKENS[draw // 1000 % len(RARE_TOKENS)])
        return self.padded(ids)

    @cached_property
    def _nouns(self) -> set[int]:
        """Return the first token of each noun."""
        return {self.ids(wording.split()[1])[1] for wordings in NOUNS.values() for wording in wordings}

    @cached_property
    def known(self) -> list[int]:
        """Return every token that a caption may contain."""
        texts = [w for values in WORDINGS.values() for wordings in values.values() for w in wordings]
        texts += [w for wordings in NOUNS.values() for w in wordings]
        return sorted({token for text in [*texts, ",", ""] for token in self.ids(text)})
