"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): learned rows of the text encoders' embedding tables.

A learned embedding is ``v* [n, width]``, n vectors that take the position of their placeholder token's embedding in a
prompt. They minimize the loss of the frozen model, ``v* = argmin E ||eps - eps_theta(x_t, t, c(prompt with v*))||^2``;
nothing else changes. A model with several text encoders has vectors for each.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..units import describe_size

FAMILY = "textual_inversion"
IDENTIFIER = "embedding:"
"""Prefix of a learned embedding's token in ComfyUI's prompts."""
MAX_VECTORS = 75
"""Tokens that CLIP takes besides start and end."""
_TOKEN = re.compile(r"\w(?:[\w-]*\w)?")
MAX_TOKEN_LENGTH = 100


def check_token(token: str) -> None:
    """Check that ``token`` can follow ``embedding:`` in a prompt and be part of a file's name.

    Raises:
        ValueError: it cannot; the message states the valid form.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN_LENGTH:
        raise ValueError(
            f"token is {token!r:.80}; give one word of letters, digits, '_' and '-' (at most {MAX_TOKEN_LENGTH}), "
            "such as 'sks-dog'"
        )


@dataclass(frozen=True, kw_only=True)
class TextualInversionConfig:
    """Settings of an embedding to be learned.

    Args:
        token: the placeholder token.
        initializer_word: a word of the text encoder's vocabulary for the subject, whose embedding is the initial value
            (section 4 of the paper: a single-word coarse descriptor).
        vectors: number of vectors n. 1 is the paper's choice; more reproduce the subject better, and are harder to
            edit (its section 5.3).
    """

    token: str = "sks-dog"
    initializer_word: str = "dog"
    vectors: int = 1

    def __post_init__(self) -> None:
        check_token(self.token)
        if not self.initializer_word.strip():
            raise ValueError("initializer_word is empty; give a word for what the subject is, such as 'dog'")
        if not 1 <= self.vectors <= MAX_VECTORS:
            raise ValueError(f"vectors is {self.vectors}; give 1 to {MAX_VECTORS}, what a prompt of CLIP can hold")


@dataclass(frozen=True, eq=False)
class LearnedEmbedding:
    """The vectors of a placeholder token for every text encoder.

    Args:
        token: the placeholder token, see :func:`check_token`.
        vectors: text encoder, as ComfyUI's embedding files name it (``clip_l``, ``clip_g``, ``t5xxl`` ...), ->
            ``[n, width]``; kept as parameters without gradient.

    Raises:
        ValueError: the token is invalid, or n is not the same for every encoder.
    """

    token: str
    vectors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_token(self.token)
        shapes = {key: tuple(tensor.shape) for key, tensor in self.vectors.items()}
        counts = {shape[0] for shape in shapes.values() if len(shape) == 2 and 0 not in shape}
        if len(counts) != 1 or any(len(shape) != 2 for shape in shapes.values()) or counts.pop() > MAX_VECTORS:
            raise ValueError(
                f"the embedding {self.token!r} has vectors of shapes {shapes}; expected [n, width] for each "
                f"text encoder, with the same n of at most {MAX_VECTORS}"
            )
        parameters = {key: nn.Parameter(v.detach(), requires_grad=False) for key, v in self.vectors.items()}
        object.__setattr__(self, "vectors", parameters)

    @property
    def vector_count(self) -> int:
        """The number n of vectors per text encoder."""
        return len(next(iter(self.vectors.values())))

    def parameters(self) -> list[nn.Parameter]:
        """Return the vectors of all text encoders."""
        return list(self.vectors.values())

    def describe(self) -> str:
        """Return a line such as ``textual_inversion (embedding:sks-dog, 1 vector for clip_l)``."""
        count = f"{self.vector_count} vector{'s' if self.vector_count > 1 else ''}"
        return f"{FAMILY} ({IDENTIFIER}{self.token}, {count} for {', '.join(self.vectors)})"

    def describe_size(self) -> str:
        """Return the number of parameters and bytes."""
        return describe_size(self.parameters())

    def copy_to(self, device: torch.device | str) -> "LearnedEmbedding":
        """Return the same values in new parameters on ``device``."""
        with torch.inference_mode(False):
            return LearnedEmbedding(
                self.token, {key: v.detach().to(device, copy=True) for key, v in self.vectors.items()}
            )

    def equals(self, other: "LearnedEmbedding") -> bool:
        """Whether token, text encoders and all values are the same."""
        same = self.token == other.token and self.vectors.keys() == other.vectors.keys()
        return same and all(torch.equal(v, other.vectors[key]) for key, v in self.vectors.items())


def vectors_from_rows(rows: Tensor, count: int) -> Tensor:
    """Return initial vectors ``[count, width]`` from the embeddings ``rows [m, width]`` of a word's m tokens.

    For ``count < m`` the tokens are divided into ``count`` runs of (almost) equal length, and the vectors are the means
    of the runs; a single vector is the mean of all rows. For ``count = m`` they are the rows, and for ``count > m`` the
    rows repeated cyclically. The paper has one vector and a word of one token, for which the result is that token's
    embedding; the rest is our choice.
    """
    if count > len(rows):
        return rows[torch.arange(count, device=rows.device) % len(rows)]
    return torch.stack([run.mean(0) for run in rows.tensor_split(count)])


def merge_embeddings(
    first: Sequence[LearnedEmbedding], second: Sequence[LearnedEmbedding]
) -> tuple[LearnedEmbedding, ...]:
    """Return the embeddings of both, each token once.

    Raises:
        ValueError: both have an embedding of one token, with different vectors.
    """
    known = {embedding.token: embedding for embedding in first}
    for embedding in second:
        if embedding.token in known and not embedding.equals(known[embedding.token]):
            raise ValueError(
                f"first and second both hold a learned embedding {embedding.token!r}, with different vectors; "
                "train one of them under another token"
            )
    return (*first, *(embedding for embedding in second if embedding.token not in known))


def mentions_token(prompt: str, token: str) -> bool:
    """Whether ``prompt`` contains the placeholder token, as ``sks-dog`` or as ``embedding:sks-dog``."""
    return _token_pattern(token).search(prompt) is not None


def expand_placeholders(prompt: str, tokens: Iterable[str]) -> str:
    """Return ``prompt`` with every placeholder token in the form that ComfyUI's tokenizers look up.

    ``a photo of sks-dog.`` becomes ``a photo of embedding:sks-dog .``.
    """
    for token in tokens:
        prompt = _token_pattern(token).sub(partial(_lookup_form, token), prompt)
    return prompt


def _token_pattern(token: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w/\\-])(?:{IDENTIFIER})?{re.escape(token)}(?![\w/-]|\\(?!\))|\.\w)")


def _lookup_form(token: str, found: re.Match[str]) -> str:
    """Return ``embedding:<token>`` with spaces around it where the prompt has none.

    ComfyUI's lookup begins after a space and ends at one, or at a comma followed by a space. No other delimiter works
    with every tokenizer, and the lookup drops the added spaces.
    """
    before, after = found.string[: found.start()], found.string[found.end() :]
    first = "" if not before or before[-1].isspace() else " "
    last = "" if not after or re.match(r",?\s", after) else " "
    return f"{first}{IDENTIFIER}{token}{last}"
