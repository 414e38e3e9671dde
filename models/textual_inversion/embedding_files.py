"""Learnt words in files: our own, and the embedding files that prompts of ComfyUI look up."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import validation
from .embeddings import LearnedEmbedding, check_token


def comfyui_embedding_tensors(words: Sequence[LearnedEmbedding]) -> dict[str, Tensor]:
    """A word as an embedding file of ComfyUI (and AUTOMATIC1111 and diffusers) holds it: a tensor for each encoder.

    With a single encoder it is called ``emb_params``, the name that every program reads.

    Raises:
        ValueError: several words; a file is one.
    """
    if len(words) != 1:
        tokens = ", ".join(word.token for word in words)
        raise ValueError(f"an embedding file holds one word, the adapter {len(words)} ({tokens}); save each by itself")
    (vectors,) = (word.vectors for word in words)
    if len(vectors) == 1:
        return {"emb_params": next(iter(vectors.values())).detach()}
    return {key: vector.detach() for key, vector in vectors.items()}


def embedding_tensor_names(token: str, encoders: Sequence[str]) -> dict[str, str]:
    """Text encoder -> its tensor's name in our own files, ``embedding/<token>/<encoder>``.

    Raises:
        ValueError: the token is none, or the encoders are no names.
    """
    check_token(token)
    if not isinstance(encoders, list | tuple) or not all(map(_is_encoder, encoders)):
        raise ValueError(f"gives the word {token!r} the text encoders {encoders!r:.80}; expected names such as clip_l")
    return {key: f"embedding/{token}/{key}" for key in encoders}


def _is_encoder(key: Any) -> bool:
    return isinstance(key, str) and re.fullmatch(r"\w{1,100}", key) is not None


def native_embedding_tensors(words: Sequence[LearnedEmbedding]) -> dict[str, Tensor]:
    """The tensors of the words in our own files."""
    return {
        place: word.vectors[key].detach()
        for word in words
        for key, place in embedding_tensor_names(word.token, tuple(word.vectors)).items()
    }


def embedding_header_entries(words: Sequence[LearnedEmbedding]) -> list[dict[str, Any]]:
    """What our own files' headers say of them."""
    return [{"token": word.token, "encoders": list(word.vectors)} for word in words]


def embedding_from_header(token: str, encoders: Sequence[str], tensors: dict[str, Tensor]) -> LearnedEmbedding:
    """Return the embedding that an entry of a header describes; its tensors are removed from ``tensors``.

    Args:
        token: the placeholder token.
        encoders: the text encoders that it has vectors for.
        tensors: all tensors of the file.

    Raises:
        ValueError: the entry is invalid, or a tensor is missing or no embedding.
    """
    places = embedding_tensor_names(token, encoders)
    if missing := [name for name in places.values() if name not in tensors]:
        raise ValueError(f"lacks {', '.join(missing)}; the file is not whole")
    return LearnedEmbedding(
        token, {key: validation.checked_tensor(tensors.pop(full), full) for key, full in places.items()}
    )
