"""Text conditioning by ComfyUI: prompt -> CONDITIONING -> arguments of the model's forward."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import comfy.model_base
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ....models.textual_inversion.embeddings import LearnedEmbedding, expand_placeholders
from ....models.validation import MAX_PROMPT_LENGTH, is_finite
from ....trainers.data.dataset import Example, Frame, Subject
from .learned_embeddings import initial_vectors, require_embeddings_found, with_embeddings
from .per_subject import encode_per_subject

ModelArguments = dict[str, Any]
"""Keyword arguments of ``apply_model``, for a batch."""
Conditions = dict[str, Any]
"""ComfyUI's condition objects by argument name, for one sample."""

DISTILLED_GUIDANCE = 1.0
"""Guidance that guidance-distilled models (Flux [dev]) get in training unless the conditioning carries its own. At 1
their output is the plain conditional velocity, which is the target of the loss; at the sampler's default of 3.5 it is
the guided velocity, and training it towards the plain one would undo the distillation. Trainers commonly use 1."""

SIZED = (comfy.model_base.SDXL, comfy.model_base.SDXLRefiner)
"""Models conditioned on the image's size and crop (2307.01952, section 2.2)."""

SEED = 0
"""Of the noise that some models add to a reference image (the x4 upscaler); a sampler gives its own."""

CACHE_BYTES = 2**28
"""Bytes of conditioning that are cached on the device; 77 tokens of SD1.5 take 0.24 MB, 512 of Flux 8 MB."""


def encode_prompt(clip: Any, prompt: str) -> Any:
    """Encode ``prompt`` to a CONDITIONING, as the stock CLIP Text Encode does.

    Raises:
        ValueError: it is longer than :data:`~models.validation.MAX_PROMPT_LENGTH`, or the text encoder gives NaN.
    """
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise ValueError(f"a prompt has {len(prompt)} characters ({prompt:.40}...); give at most {MAX_PROMPT_LENGTH}")
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    if not all(is_finite(part[0], math.inf) for part in conditioning):
        raise ValueError(
            f"the text encoder gives NaN or infinite values for {prompt[:60]!r}; load it in another precision, or "
            "another one"
        )
    return conditioning


def encode_prompt_with_gradient(clip: Any, prompt: str) -> Any:
    """Encode ``prompt`` to a CONDITIONING with its autograd graph, by the text encoder as it is loaded.

    The stock method would load the model at each call; during a session it is loaded already.
    """
    encoder = clip.cond_stage_model
    encoder.reset_clip_options()
    if clip.layer_idx is not None:
        encoder.set_clip_options({"layer": clip.layer_idx})
    encoder.set_clip_options({"execution_device": clip.patcher.load_device})
    cond, pooled, *extra = encoder.encode_token_weights(clip.tokenize(prompt))
    return [[cond, {"pooled_output": pooled, **(extra[0] if extra else {})}]]


@dataclass(frozen=True)
class _CachedPrompt:
    """The cache entry of one prompt.

    Args:
        conditioning: as it was given; held, so that no other object gets its id.
        copy: a copy on the device without inference tensors.
        conditions: the model's conditions made from it, by latent size and frame.
    """

    conditioning: Any
    copy: Any
    conditions: dict[tuple[tuple[int, ...], Frame | None], Conditions] = field(default_factory=dict)


class ComfyTextConditioning:
    """The session's text conditioning: batches of examples -> arguments of ``apply_model``.

    Implements :class:`trainers.session.TextConditioning`. The model's own ``extra_conds`` turns a conditioning into
    arguments. With ``clip``, its text encoder or a learned embedding trains: every batch encodes its distinct prompts
    again, with gradients. Without it, the examples' stored conditionings are used, and the arguments made from them are
    cached per latent size (and per frame, if the model is conditioned on one). All entries of a prompt share that
    prompt's tensors. When the cached conditionings exceed :data:`CACHE_BYTES`, the least recently used prompts leave.

    Args:
        model: the MODEL's network wrapper (``patcher.model``).
        device: the training device.
        clip: the CLIP if its text encoder or a learned embedding trains, else None.
    """

    def __init__(self, model: Any, device: torch.device, clip: Any = None):
        self.model, self.device, self.clip = model, device, clip
        self._tokens: tuple[str, ...] = ()
        self._cache: dict[int, _CachedPrompt] = {}

    def condition(self, examples: Sequence[Example]) -> ModelArguments | tuple[ModelArguments, ...]:
        """Return the arguments for a batch, or one per example if their texts cannot be concatenated.

        Each example is expected to hold one variant; of several, the first one's frame is used.
        """
        if self.clip is None:
            return _collate([self.cached(e.cond, e.size, self._frame(e)) for e in examples])
        encoded = {prompt: self._encoded(prompt) for prompt in _distinct(examples)}
        return _collate([self._prepare(encoded.get(e.prompt, e.cond), e.size, self._frame(e)) for e in examples])

    def unconditional(self, subject: Subject) -> ModelArguments | None:
        """Return the arguments for the empty prompt, or None if the subject holds none."""
        if subject.unconditional is None:
            return None
        return self.arguments(subject.unconditional, subject.examples[0].size)

    def initial_vectors(self, word: str, count: int) -> Mapping[str, Tensor]:
        """Return initial vectors ``[count, width]`` for each text encoder, from its embeddings of ``word``."""
        return initial_vectors(self.clip, word, count)

    def condition_per_subject(self, examples: Sequence[Example]) -> ModelArguments | tuple[ModelArguments, ...]:
        """Return the arguments for a batch of one example per subject, with per-subject adapters on the text encoder.

        Raises:
            ValueError: the text encoder trains and the prompts differ, or the model cannot take the encoded prompts in
                one batch because their lengths differ.
        """
        prompts = _distinct(examples)
        if self.clip is None:
            batch = self.condition(examples)
            if isinstance(batch, tuple) and len(prompts) > 1:
                raise ValueError(
                    f"captions: this model does not take prompts of different lengths in one batch, such as "
                    f"{min(prompts, key=len)!r:.60} and {max(prompts, key=len)!r:.60}; train one subject at a time "
                    "(subjects_per_batch, batch_size 1), or build the bank without captions"
                )
            return batch
        if len(prompts) != 1 or any(example.prompt is None for example in examples):
            raise ValueError(
                f"subjects trained in one batch must share one prompt when the text encoder trains, not {prompts}"
            )
        encoded = encode_per_subject(self.clip, len(examples), lambda: self._encoded(prompts[0]))
        return _collate(
            [self._prepare(one, e.size, self._frame(e)) for one, e in zip(encoded, examples, strict=True)]
        )  # fmt: skip

    @contextmanager
    def with_embeddings(self, embeddings: Sequence[LearnedEmbedding], prompts: Sequence[str] = ()) -> Iterator[None]:
        """Resolve the placeholder tokens of ``embeddings`` to their current vectors inside the block.

        Args:
            embeddings: the learned embeddings; without a ``clip`` they have no effect.
            prompts: checked by :func:`require_embeddings_found` before the block is entered.

        Raises:
            ValueError: a text encoder takes vectors of another width, or its tokenizer does not find a placeholder
                token in one of ``prompts``.
        """
        before = self.clip, self._tokens
        if self.clip is not None:
            extended = with_embeddings(self.clip, embeddings)
            require_embeddings_found(extended, embeddings, prompts)
            self.clip, self._tokens = extended, tuple(embedding.token for embedding in embeddings)
        try:
            yield
        finally:
            self.clip, self._tokens = before

    def _encoded(self, prompt: str) -> Any:
        return encode_prompt_with_gradient(self.clip, expand_placeholders(prompt, self._tokens))

    def cached(self, conditioning: Any, size: tuple[int, ...], frame: Frame | None = None) -> Conditions:
        """Return the model's conditions for one conditioning from the cache, or make them, without inference tensors.

        Args:
            conditioning: a CONDITIONING of one part; identified by its ``id``.
            size: of the latent, ``(C, ..., h, w)``.
            frame: original size and crop, or None for what the conditioning itself carries.
        """
        entry = self._cache.pop(id(conditioning), None)
        entry = entry or _CachedPrompt(conditioning, _without_inference_tensors(conditioning, self.device))
        self._cache[id(conditioning)] = entry
        if (size, frame) not in entry.conditions:
            entry.conditions[size, frame] = self._prepare(entry.copy, size, frame)
            self._evict()
        return entry.conditions[size, frame]

    def _evict(self) -> None:
        """Remove the least recently used prompts beyond :data:`CACHE_BYTES`; the most recent one always stays."""
        free = CACHE_BYTES
        for key, entry in reversed([*self._cache.items()]):
            free -= _bytes_of(entry.copy)
            if free < 0 and key != next(reversed(self._cache)):
                del self._cache[key]

    def arguments(self, conditioning: Any, size: tuple[int, ...]) -> ModelArguments:
        """Return the arguments for a batch of one latent of ``size = (C, ..., h, w)``."""
        return _collate([self.cached(conditioning, size)])

    def _frame(self, example: Example) -> Frame | None:
        return example.frames[0] if example.frames and isinstance(self.model, SIZED) else None

    def _prepare(self, conditioning: Any, size: tuple[int, ...], frame: Frame | None) -> Conditions:
        """Make the model's conditions; without a frame, sizes are those the conditioning carries, or the latent's."""
        entries = comfy.sampler_helpers.convert_cond(conditioning)
        if len(entries) != 1:
            raise ValueError(f"a prompt's conditioning has {len(entries)} parts; training takes one part per image")
        sizes = asdict(frame) if frame is not None else {}
        if self.model.model_config.unet_config.get("guidance_embed"):
            entries[0].setdefault("guidance", DISTILLED_GUIDANCE)
        noise = torch.zeros((1, *size), device=self.device)
        (entry,) = comfy.samplers.encode_model_conds(
            self.model.extra_conds, [{**entries[0], **sizes}], noise, self.device, "positive", latent_image=noise,
            seed=SEED,
        )  # fmt: skip
        conditions = entry["model_conds"]
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in conditions.items()}


def _distinct(examples: Sequence[Example]) -> list[str]:
    return list(dict.fromkeys(example.prompt for example in examples if example.prompt is not None))


def _collate(prepared: Sequence[Conditions]) -> ModelArguments | tuple[ModelArguments, ...]:
    """Concatenate single conditions to one batch as ComfyUI does, or return them one by one if it cannot."""
    first, *others = prepared
    if not others:
        return {name: cond.cond for name, cond in first.items()}
    if not all(_can_concatenate(first, other) for other in others):
        return tuple(_collate([single]) for single in prepared)
    return {name: cond.concat([other[name] for other in others]) for name, cond in first.items()}


def _can_concatenate(first: Conditions, other: Conditions) -> bool:
    return first.keys() == other.keys() and all(cond.can_concat(other[name]) for name, cond in first.items())


def _without_inference_tensors(value: Any, device: torch.device) -> Any:
    """Copy to the device so that no tensor is an inference tensor, which autograd could not save for backward."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: _without_inference_tensors(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_inference_tensors(item, device) for item in value)
    return value


def _bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_bytes_of, parts))
