"""Learnt words on ComfyUI's text encoders: its tokenizers take tensors in the place of tokens.

A prompt's ``embedding:name`` is looked up by each encoder's tokenizer, which puts the rows that it finds into the list
of tokens; the encoder puts them among the embeddings of the others. Here a *copy* of the tokenizer looks among given
words first, then wherever it would have looked. Rows that are parameters keep their gradient on that way.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import Tensor

from ....models.textual_inversion.embeddings import LearnedEmbedding, names, spelt_out, start_at

_NAME = re.compile(r"\s*([\w-]+)(,*)(?=[\s<\[]|$)")
"""A name as the stock lookup cuts it out: up to a space or bracket, commas at its end aside."""


def initial_vectors(clip: Any, word: str, count: int) -> dict[str, Tensor]:
    """``[count, width]`` for each text encoder of ``clip``, from its embeddings of ``word``.

    Raises:
        ValueError: no encoder takes embeddings, or the word has no token.
    """
    encoders = dict(_encoders(clip))
    if not encoders:
        raise ValueError(
            f"clip: this text encoder ({type(clip.cond_stage_model).__name__}) takes no embeddings, so that no word "
            "can be trained on it; train a LoRA"
        )
    device = clip.patcher.load_device
    return {key: start_at(_rows(*encoder, word, device), count) for key, encoder in encoders.items()}


def with_embeddings(clip: Any, words: Sequence[LearnedEmbedding]) -> Any:
    """``clip`` itself, or a copy of it whose tokenizer knows ``words`` too; the encoder is shared, and unchanged.

    Raises:
        ValueError: an encoder would get vectors of another width, or none.
    """
    if not words:
        return clip
    for word in words:
        _check_fits(clip, word)
    copied = copy.copy(clip)
    copied.tokenizer = copy.copy(clip.tokenizer)
    loaded = dict(_encoders(clip))
    for name, tokenizer in _tokenizers(clip):
        if tokenizer.embedding_key in loaded:
            setattr(copied.tokenizer, name, _knowing(tokenizer, words))
    return copied


def check_embeddings_found(clip: Any, words: Sequence[LearnedEmbedding], prompts: Iterable[str]) -> None:
    """Each of ``prompts`` that names one of ``words`` gets its vectors from ``clip``, which knows them.

    Raises:
        ValueError: a prompt's tokens hold none of them, so that it would teach nothing, unnoticed.
    """
    for prompt in prompts:
        given = _storages(clip.tokenize(spelt_out(prompt, [word.token for word in words])))
        for word in words:
            unheard = [key for key, _ in _encoders(clip) if _storage(word.vectors[key]) not in given]
            if unheard and names(prompt, word.token):
                raise ValueError(
                    f"the prompt {prompt!r} names {word.token!r}, but the tokenizer of {', '.join(unheard)} does not "
                    "find it there; write it with spaces around it, and close every bracket"
                )


def _storages(tokens: Mapping[str, Any]) -> set[int]:
    """Where the tensors among a prompt's tokens (batches of token and weight for each encoder) lie in memory."""
    batches = [batch for encoder in tokens.values() for batch in encoder]
    return {_storage(token) for batch in batches for token, *_ in batch if isinstance(token, Tensor)}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _knowing(tokenizer: SDTokenizer, words: Sequence[LearnedEmbedding]) -> SDTokenizer:
    """A copy of one encoder's tokenizer that looks among ``words`` first."""
    knowing = copy.copy(tokenizer)
    if knowing.embedding_directory is None:
        knowing.embedding_directory = []  # None would switch lookups off
    elsewhere = knowing._try_get_embedding
    known = {word.token: word.vectors[tokenizer.embedding_key] for word in words}

    def look_up(text: str) -> tuple[Tensor | None, str, str]:
        found = _NAME.match(text)
        if found is None or found[1] not in known:
            return elsewhere(text)
        name, commas = found.groups()
        rest = " ".join(text[found.end() :].split())
        return known[name], name + commas, f"{commas} {rest}" if commas else rest

    knowing._try_get_embedding = look_up
    return knowing


def _tokenizers(clip: Any) -> Iterator[tuple[str, SDTokenizer]]:
    return ((name, value) for name, value in vars(clip.tokenizer).items() if isinstance(value, SDTokenizer))


def _encoders(clip: Any) -> Iterator[tuple[str, tuple[SDTokenizer, SDClipModel]]]:
    """Name in embedding files -> tokenizer and encoder; of those that are loaded and take embeddings."""
    models = dict(clip.cond_stage_model.named_children())
    for name, tokenizer in _tokenizers(clip):
        if isinstance(models.get(name), SDClipModel):
            yield tokenizer.embedding_key, (tokenizer, models[name])


def _rows(tokenizer: SDTokenizer, encoder: SDClipModel, word: str, device: torch.device) -> Tensor:
    """The embeddings of the word's tokens ``[m, width]``."""
    end = -1 if tokenizer.tokenizer_adds_end_token else None
    ids = tokenizer.tokenizer(word.strip())["input_ids"][tokenizer.tokens_start : end]
    if not ids:
        raise ValueError(
            f"initializer_word {word!r} has no token in {tokenizer.embedding_key}; give a word such as 'dog'"
        )
    with torch.inference_mode(False), torch.no_grad():
        table = encoder.transformer.get_input_embeddings()
        return table(torch.tensor([ids], device=device), out_dtype=torch.float32)[0].clone()


def _check_fits(clip: Any, word: LearnedEmbedding) -> None:
    for key, (_, encoder) in _encoders(clip):
        width = encoder.transformer.get_input_embeddings().embedding_dim
        given = word.vectors[key].shape[-1] if key in word.vectors else "none"
        if given != width:
            has = ", ".join(f"{name} of width {v.shape[-1]}" for name, v in word.vectors.items())
            raise ValueError(
                f"the word {word.token!r} was trained for other text encoders: it has vectors for {has}; this clip "
                f"({type(clip.cond_stage_model).__name__}) takes {key} of width {width}"
            )
