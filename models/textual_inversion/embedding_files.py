"""Learned embeddings in files: the native adapter file, and the embedding files that ComfyUI's prompts look up."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import validation
from .embeddings import LearnedEmbedding, check_token


def comfyui_embedding_tensors(embeddings: Sequence[LearnedEmbedding]) -> dict[str, Tensor]:
    """Return the tensors of an embedding file of ComfyUI, AUTOMATIC1111 and diffusers: one for each text encoder.

    The tensor of a single encoder is called ``emb_params``, the name that every program reads.

    Raises:
        ValueError: there is not exactly one embedding; a file holds one.
    """
    if len(embeddings) != 1:
        tokens = ", ".join(embedding.token for embedding in embeddings)
        raise ValueError(
            f"an embedding file holds one learned embedding, the adapter {len(embeddings)} ({tokens}); save each by "
            "itself"
        )
    (vectors,) = (embedding.vectors for embedding in embeddings)
    if len(vectors) == 1:
        return {"emb_params": next(iter(vectors.values())).detach()}
    return {key: vector.detach() for key, vector in vectors.items()}


def embedding_tensor_names(token: str, encoders: Sequence[str]) -> dict[str, str]:
    """Return text encoder -> the tensor's name in a native file, ``embedding/<token>/<encoder>``.

    Raises:
        ValueError: the token or the name of an encoder is invalid.
    """
    check_token(token)
    if not isinstance(encoders, list | tuple) or not all(map(_is_encoder_name, encoders)):
        raise ValueError(
            f"gives the embedding {token!r} the text encoders {encoders!r:.80}; expected names such as clip_l"
        )
    return {key: f"embedding/{token}/{key}" for key in encoders}


def _is_encoder_name(key: Any) -> bool:
    return isinstance(key, str) and re.fullmatch(r"\w{1,100}", key) is not None


def native_embedding_tensors(embeddings: Sequence[LearnedEmbedding]) -> dict[str, Tensor]:
    """Return the embeddings' tensors under their names in a native file."""
    return {
        name: embedding.vectors[key].detach()
        for embedding in embeddings
        for key, name in embedding_tensor_names(embedding.token, tuple(embedding.vectors)).items()
    }


def embedding_header_entries(embeddings: Sequence[LearnedEmbedding]) -> list[dict[str, Any]]:
    """Return the entries that describe the embeddings in the header of a native file."""
    return [{"token": embedding.token, "encoders": list(embedding.vectors)} for embedding in embeddings]


def embedding_from_header(token: str, encoders: Sequence[str], tensors: dict[str, Tensor]) -> LearnedEmbedding:
    """Return the embedding that an entry of a header describes; its tensors are removed from ``tensors``.

    Args:
        token: the placeholder token.
        encoders: the text encoders that it has vectors for.
        tensors: all tensors of the file.

    Raises:
        ValueError: the entry is invalid, or a tensor is missing or no embedding.
    """
    names = embedding_tensor_names(token, encoders)
    if missing := [name for name in names.values() if name not in tensors]:
        raise ValueError(f"lacks {', '.join(missing)}; the file is not whole")
    return LearnedEmbedding(
        token, {key: validation.checked_tensor(tensors.pop(full), full) for key, full in names.items()}
    )
