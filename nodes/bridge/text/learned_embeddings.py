"""Learned embeddings in ComfyUI's CLIP: placeholder tokens that its tokenizers resolve to trained vectors.

Each encoder's tokenizer looks up a prompt's ``embedding:name`` and puts the rows that it finds into the list of tokens;
the encoder puts them among the other tokens' embeddings. Here a *copy* of the tokenizer looks among given learned
embeddings first, and then wherever it would have looked. Rows that are parameters keep their gradient on that path.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import Tensor

from ....models.textual_inversion.embeddings import (
    LearnedEmbedding,
    expand_placeholders,
    mentions_token,
    vectors_from_rows,
)

_NAME = re.compile(r"\s*([\w-]+)(,*)(?=[\s<\[]|$)")
"""A name as the stock lookup delimits it: up to a space or bracket, without trailing commas."""


def initial_vectors(clip: Any, word: str, count: int) -> dict[str, Tensor]:
    """Make initial vectors for a learned embedding from the encoders' embeddings of ``word``.

    Args:
        clip: the CLIP, loaded on its device.
        word: the initializer word, of one or more tokens.
        count: number of vectors.

    Returns:
        ``[count, width]`` for each text encoder, by its name in embedding files.

    Raises:
        ValueError: no encoder takes embeddings, or the word has no token.
    """
    encoders = dict(_encoders(clip))
    if not encoders:
        raise ValueError(
            f"clip: this text encoder ({type(clip.cond_stage_model).__name__}) takes no embeddings, so none can be "
            "learned for it; train a LoRA"
        )
    device = clip.patcher.load_device
    return {key: vectors_from_rows(_rows(*encoder, word, device), count) for key, encoder in encoders.items()}


def with_embeddings(clip: Any, embeddings: Sequence[LearnedEmbedding]) -> Any:
    """Return a copy of ``clip`` whose tokenizer also resolves the placeholder tokens of ``embeddings``.

    The text encoder is shared and unchanged. Without embeddings ``clip`` itself is returned.

    Raises:
        ValueError: a text encoder would get vectors of another width, or none.
    """
    if not embeddings:
        return clip
    for embedding in embeddings:
        _require_widths(clip, embedding)
    copied = copy.copy(clip)
    copied.tokenizer = copy.copy(clip.tokenizer)
    loaded = dict(_encoders(clip))
    for name, tokenizer in _tokenizers(clip):
        if tokenizer.embedding_key in loaded:
            setattr(copied.tokenizer, name, _extended(tokenizer, embeddings))
    return copied


def require_embeddings_found(clip: Any, embeddings: Sequence[LearnedEmbedding], prompts: Iterable[str]) -> None:
    """Check that every prompt that names a placeholder token is tokenized to its vectors.

    Args:
        clip: a CLIP from :func:`with_embeddings`.
        embeddings: those given to it.
        prompts: the prompts of a training run.

    Raises:
        ValueError: a tokenizer does not find a placeholder token in a prompt that names it; training on this prompt
            would have no effect on the embedding.
    """
    for prompt in prompts:
        found = _storages(clip.tokenize(expand_placeholders(prompt, [embedding.token for embedding in embeddings])))
        for embedding in embeddings:
            missing = [key for key, _ in _encoders(clip) if _storage(embedding.vectors[key]) not in found]
            if missing and mentions_token(prompt, embedding.token):
                raise ValueError(
                    f"the prompt {prompt!r} names {embedding.token!r}, but the tokenizer of {', '.join(missing)} does "
                    "not find it there; write it with spaces around it, and close every bracket"
                )


def _storages(tokens: Mapping[str, Any]) -> set[int]:
    """Return the addresses of the tensors among a prompt's tokens (encoder -> batches of token and weight)."""
    batches = [batch for encoder in tokens.values() for batch in encoder]
    return {_storage(token) for batch in batches for token, *_ in batch if isinstance(token, Tensor)}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _extended(tokenizer: SDTokenizer, embeddings: Sequence[LearnedEmbedding]) -> SDTokenizer:
    """Copy one encoder's tokenizer so that it looks among ``embeddings`` first."""
    extended = copy.copy(tokenizer)
    if extended.embedding_directory is None:
        extended.embedding_directory = []  # None would disable lookups
    stock_lookup = extended._try_get_embedding
    vectors = {embedding.token: embedding.vectors[tokenizer.embedding_key] for embedding in embeddings}

    def look_up(text: str) -> tuple[Tensor | None, str, str]:
        match = _NAME.match(text)
        if match is None or match[1] not in vectors:
            return stock_lookup(text)
        name, commas = match.groups()
        rest = " ".join(text[match.end() :].split())
        return vectors[name], name + commas, f"{commas} {rest}" if commas else rest

    extended._try_get_embedding = look_up
    return extended


def _tokenizers(clip: Any) -> Iterator[tuple[str, SDTokenizer]]:
    return ((name, value) for name, value in vars(clip.tokenizer).items() if isinstance(value, SDTokenizer))


def _encoders(clip: Any) -> Iterator[tuple[str, tuple[SDTokenizer, SDClipModel]]]:
    """Yield the name in embedding files, tokenizer and model of each encoder that is loaded and takes embeddings."""
    models = dict(clip.cond_stage_model.named_children())
    for name, tokenizer in _tokenizers(clip):
        if isinstance(models.get(name), SDClipModel):
            yield tokenizer.embedding_key, (tokenizer, models[name])


def _rows(tokenizer: SDTokenizer, encoder: SDClipModel, word: str, device: torch.device) -> Tensor:
    """Return the embeddings ``[m, width]`` of the word's ``m`` tokens in float32."""
    end = -1 if tokenizer.tokenizer_adds_end_token else None
    ids = tokenizer.tokenizer(word.strip())["input_ids"][tokenizer.tokens_start : end]
    if not ids:
        raise ValueError(
            f"initializer_word {word!r} has no token in {tokenizer.embedding_key}; give a word such as 'dog'"
        )
    with torch.inference_mode(False), torch.no_grad():
        table = encoder.transformer.get_input_embeddings()
        return table(torch.tensor([ids], device=device), out_dtype=torch.float32)[0].clone()


def _require_widths(clip: Any, embedding: LearnedEmbedding) -> None:
    for key, (_, encoder) in _encoders(clip):
        width = encoder.transformer.get_input_embeddings().embedding_dim
        given = embedding.vectors[key].shape[-1] if key in embedding.vectors else "none"
        if given != width:
            has = ", ".join(f"{name} of width {v.shape[-1]}" for name, v in embedding.vectors.items())
            raise ValueError(
                f"the learned embedding {embedding.token!r} was trained for other text encoders: it has vectors for "
                f"{has}; this clip ({type(clip.cond_stage_model).__name__}) takes {key} of width {width}"
            )
