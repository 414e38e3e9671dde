"""The tokens of captions. Only these have vectors that are trained; all others keep the random ones they begin with."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..random_draws import mix
from ..scene.captions import NOUNS, WORDS

TOKENS = 77
END = 49407
"""The token after a text, and until TOKENS."""
VOCABULARY = 49408
SPREAD = 0.3
"""Deviation of a token's vector at the beginning."""
STRANGE = 0.15
"""The chance that a caption holds a word nobody knows, before its noun: the base learns to pass over it, and a
person's identifier is one."""
STRANGERS = range(1000, 40000)
"""Tokens among which a strange word is drawn."""


def first_vectors(width: int) -> Tensor:
    """[VOCABULARY, width]: the same on every machine."""
    return SPREAD * torch.randn(VOCABULARY, width, generator=torch.Generator().manual_seed(0))


class Words:
    """Captions as tokens, by ComfyUI's own tokenizer for SD1.5."""

    def __init__(self) -> None:
        from comfy.sd1_clip import SDTokenizer

        self.tokenizer: Any = SDTokenizer().tokenizer

    def ids(self, text: str) -> list[int]:
        """With the marks of beginning and end."""
        return self.tokenizer(text)["input_ids"]

    def padded(self, ids: list[int]) -> list[int]:
        """TOKENS of them, as ComfyUI pads: with the mark of the end."""
        return (ids + [ids[-1]] * TOKENS)[:TOKENS]

    def of_example(self, caption: str, number: int) -> list[int]:
        """The tokens of example `number`, at times with a strange word among them."""
        ids, draw = self.ids(caption), mix(number ^ 0x57A46E)
        if draw % 1000 < 1000 * STRANGE:
            at = next(at for at, token in enumerate(ids) if token in self._nouns)
            ids.insert(at, STRANGERS[draw // 1000 % len(STRANGERS)])
        return self.padded(ids)

    @cached_property
    def _nouns(self) -> set[int]:
        """First tokens of what follows the article."""
        return {self.ids(wording.split()[1])[1] for wordings in NOUNS.values() for wording in wordings}

    @cached_property
    def known(self) -> list[int]:
        """Every token that a caption may hold."""
        texts = [w for values in WORDS.values() for wordings in values.values() for w in wordings]
        texts += [w for wordings in NOUNS.values() for w in wordings]
        return sorted({token for text in [*texts, ",", ""] for token in self.ids(text)})
