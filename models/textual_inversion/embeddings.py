"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): new words, as rows of the text encoders' embedding tables.

A word is ``v* [n, width]``, n vectors that stand in a prompt where its token's embedding would: through the frozen
model, ``v* = argmin E ||eps - eps_theta(x_t, t, c(prompt with v*))||^2``. Nothing else changes. A model with several
text encoders has vectors for each.
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
"""What ComfyUI's prompts write before the name of a word."""
MAX_VECTORS = 75
"""Tokens that CLIP takes beside start and end."""
_TOKEN = re.compile(r"\w(?:[\w-]*\w)?")
MAX_TOKEN_LENGTH = 100


def check_token(token: str) -> None:
    """``token`` can stand in a prompt after ``embedding:``, and in a file's name.

    Raises:
        ValueError: it cannot; the message says what can.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN_LENGTH:
        raise ValueError(
            f"token is {token!r:.80}; give one word of letters, digits, '_' and '-' (at most {MAX_TOKEN_LENGTH}), "
            "such as 'sks-dog'"
        )


@dataclass(frozen=True)
class TextualInversionConfig:
    """A word to be learnt.

    Args:
        token: its name.
        initializer_word: what the subject is, in a word the text encoder knows; the vectors start there (section 4
            of the paper: a single-word coarse descriptor).
        vectors: how many vectors it has. 1 is the paper's choice; more hold more, and are harder to edit (its
            section 5.3).
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
    """A word that training made.

    Args:
        token: its name, see :func:`check_token`.
        vectors: text encoder, as ComfyUI's embedding files name it (``clip_l``, ``clip_g``, ``t5xxl`` ...), ->
            ``[n, width]``; kept as parameters.

    Raises:
        ValueError: the token is none, or the vectors are not as many for every encoder.
    """

    token: str
    vectors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_token(self.token)
        shapes = {key: tuple(tensor.shape) for key, tensor in self.vectors.items()}
        counts = {shape[0] for shape in shapes.values() if len(shape) == 2 and 0 not in shape}
        if len(counts) != 1 or any(len(shape) != 2 for shape in shapes.values()) or counts.pop() > MAX_VECTORS:
            raise ValueError(
                f"the word {self.token!r} has vectors of shapes {shapes}; it takes [n, width] for each text encoder, "
                f"n alike and at most {MAX_VECTORS}"
            )
        parameters = {key: nn.Parameter(v.detach(), requires_grad=False) for key, v in self.vectors.items()}
        object.__setattr__(self, "vectors", parameters)

    @property
    def vector_count(self) -> int:
        """Vectors per text encoder."""
        return len(next(iter(self.vectors.values())))

    def parameters(self) -> list[nn.Parameter]:
        return list(self.vectors.values())

    def describe(self) -> str:
        """``textual_inversion (embedding:sks-dog, 1 vector for clip_l)``."""
        count = f"{self.vector_count} vector{'s' if self.vector_count > 1 else ''}"
        return f"{FAMILY} ({IDENTIFIER}{self.token}, {count} for {', '.join(self.vectors)})"

    def describe_size(self) -> str:
        return describe_size(self.parameters())

    def copy_to(self, device: torch.device | str) -> "LearnedEmbedding":
        """The same values in new parameters on ``device``."""
        with torch.inference_mode(False):
            return LearnedEmbedding(
                self.token, {key: v.detach().to(device, copy=True) for key, v in self.vectors.items()}
            )

    def equals(self, other: "LearnedEmbedding") -> bool:
        """Whether it is the same word with the same numbers."""
        same = self.token == other.token and self.vectors.keys() == other.vectors.keys()
        return same and all(torch.equal(v, other.vectors[key]) for key, v in self.vectors.items())


def vectors_from_rows(rows: Tensor, count: int) -> Tensor:
    """``count`` vectors ``[count, width]`` from a word's embeddings ``rows [m, width]``.

    Fewer than the word has tokens: its tokens in ``count`` runs of equal length (or nearly), each run's mean, so that
    a single vector is the mean of all. As many: the rows themselves. More: the rows over and over. The paper has one
    vector and a word of one token, for which this is that token's embedding; the rest is our choice.
    """
    if count > len(rows):
        return rows[torch.arange(count, device=rows.device) % len(rows)]
    return torch.stack([run.mean(0) for run in rows.tensor_split(count)])


def merge_embeddings(
    first: Sequence[LearnedEmbedding], second: Sequence[LearnedEmbedding]
) -> tuple[LearnedEmbedding, ...]:
    """The words of both.

    Raises:
        ValueError: both have a word of one name, with other vectors.
    """
    known = {word.token: word for word in first}
    for word in second:
        if word.token in known and not word.equals(known[word.token]):
            raise ValueError(
                f"first and second both hold a word {word.token!r}, with other vectors; "
                "train one of them under another token"
            )
    return (*first, *(word for word in second if word.token not in known))


def mentions_token(prompt: str, token: str) -> bool:
    """Whether ``prompt`` names the word, as ``sks-dog`` or as ``embedding:sks-dog``."""
    return _mention(token).search(prompt) is not None


def expand_placeholders(prompt: str, tokens: Iterable[str]) -> str:
    """``a photo of sks-dog.`` -> ``a photo of embedding:sks-dog .``: as ComfyUI's tokenizers look words up."""
    for token in tokens:
        prompt = _mention(token).sub(partial(_spaced, token), prompt)
    return prompt


def _mention(token: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w/\\-])(?:{IDENTIFIER})?{re.escape(token)}(?![\w/-]|\\(?!\))|\.\w)")


def _spaced(token: str, found: re.Match[str]) -> str:
    """A lookup begins after a space and ends at one, or at a comma with a space after it.

    Spaces go around it wherever none are: no other end of a word holds for every tokenizer, and the lookup drops them.
    """
    before, after = found.string[: found.start()], found.string[found.end() :]
    first = "" if not before or before[-1].isspace() else " "
    last = "" if not after or re.match(r",?\s", after) else " "
    return f"{first}{IDENTIFIER}{token}{last}"
