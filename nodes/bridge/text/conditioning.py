"""Prompts on their way into the model: encoding, and CONDITIONING -> arguments of the model's forward."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import comfy.model_base
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ....models.textual_inversion.embeddings import LearnedEmbedding, spelt_out
from ....trainers.data.dataset import Example, Frame, Subject
from .learned_embeddings import check_embeddings_found, initial_vectors, with_embeddings
from .per_subject import encode_per_subject

Arguments = dict[str, Any]

GUIDANCE = 1.0
"""What guidance-distilled models (Flux [dev]) are told in training unless the conditioning says otherwise. At 1 their
output stands for the plain conditional velocity, which is what the loss compares it with; at the sampler's default of
3.5 it stands for the guided one, and a plain target would wear the distillation off. Trainers commonly do the same."""


def encode_prompt(clip: Any, prompt: str) -> Any:
    """The CONDITIONING of ``prompt``, as the stock CLIP Text Encode gives it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def encode_prompt_with_gradient(clip: Any, prompt: str) -> Any:
    """The same through the text encoder as it stands on its device, keeping the graph.

    The stock method loads the model anew at each call; during a session it is loaded already.
    """
    encoder = clip.cond_stage_model
    encoder.reset_clip_options()
    if clip.layer_idx is not None:
        encoder.set_clip_options({"layer": clip.layer_idx})
    encoder.set_clip_options({"execution_device": clip.patcher.load_device})
    cond, pooled, *extra = encoder.encode_token_weights(clip.tokenize(prompt))
    return [[cond, {"pooled_output": pooled, **(extra[0] if extra else {})}]]


SIZED = (comfy.model_base.SDXL, comfy.model_base.SDXLRefiner)
"""Models that are told the picture's size and crop (2307.01952, section 2.2)."""


MOST_BYTES = 2**28
"""Of conditioning that is kept on the device; 77 tokens of SD1.5 take 0.24 MB, 512 of Flux 8 MB."""


@dataclass(frozen=True)
class _Kept:
    """A prompt's.

    Args:
        conditioning: as it was given; held, so that its id stays its own.
        ordinary: a copy on the device, free of inference mode.
        made: of it, by latent size and frame.
    """

    conditioning: Any
    ordinary: Any
    made: dict[tuple[tuple[int, ...], Frame | None], dict[str, Any]] = field(default_factory=dict)


class ComfyTextConditioning:
    """Batches of examples -> arguments of ``apply_model``, by the model's own ``extra_conds``.

    What a prompt gives is kept per latent size (and per frame, where the model takes one), unless the text encoder
    or a word trains (``clip`` given): then every batch encodes its prompts anew, each distinct one once. All that is
    kept for one prompt shares the prompt's own tensors. Of more prompts than :data:`MOST_BYTES` hold, those used
    least lately are made again.
    """

    def __init__(self, model: Any, device: torch.device, clip: Any = None):
        self.model, self.device, self.clip = model, device, clip
        self._tokens: tuple[str, ...] = ()
        self._kept: dict[int, _Kept] = {}

    def condition(self, examples: Sequence[Example]) -> Arguments | tuple[Arguments, ...]:
        """For examples of one variant each (of several, the first one's frame counts)."""
        if self.clip is None:
            return _collate([self.kept(e.cond, e.size, self._frame(e)) for e in examples])
        encoded = {prompt: self._encoded(prompt) for prompt in _distinct(examples)}
        return _collate([self._prepare(encoded.get(e.prompt, e.cond), e.size, self._frame(e)) for e in examples])

    def unconditional(self, subject: Subject) -> Arguments | None:
        """Return the arguments for the empty prompt, or None if the subject holds none."""
        if subject.unconditional is None:
            return None
        return self.arguments(subject.unconditional, subject.examples[0].size)

    def initial_vectors(self, word: str, count: int) -> Mapping[str, Tensor]:
        """Return vectors ``[count, width]`` for each text encoder that start at ``word``."""
        return initial_vectors(self.clip, word, count)

    def condition_per_subject(self, examples: Sequence[Example]) -> Arguments | tuple[Arguments, ...]:
        """The same for several subjects, each with adapters of its own for its example, the text encoder's as well.

        Raises:
            ValueError: the text encoder trains, and prompts differ; or it gives them so many lengths that the model
                does not take them in one batch.
        """
        prompts = _distinct(examples)
        if self.clip is None:
            made = self.condition(examples)
            if isinstance(made, tuple) and len(prompts) > 1:
                raise ValueError(
                    f"captions: this model does not take prompts of different lengths in one batch, such as "
                    f"{min(prompts, key=len)!r:.60} and {max(prompts, key=len)!r:.60}; train one subject at a time "
                    "(subjects_per_batch, batch_size 1), or build the bank without captions"
                )
            return made
        if len(prompts) != 1 or any(example.prompt is None for example in examples):
            raise ValueError(f"subjects side by side have one prompt, not {prompts}")
        encoded = encode_per_subject(self.clip, len(examples), lambda: self._encoded(prompts[0]))
        return _collate(
            [self._prepare(one, e.size, self._frame(e)) for one, e in zip(encoded, examples, strict=True)]
        )  # fmt: skip

    @contextmanager
    def with_embeddings(self, words: Sequence[LearnedEmbedding], prompts: Sequence[str] = ()) -> Iterator[None]:
        """Inside the block prompts may name ``words``; see :func:`check_embeddings_found` for ``prompts``."""
        before = self.clip, self._tokens
        if self.clip is not None:
            knowing = with_embeddings(self.clip, words)
            check_embeddings_found(knowing, words, prompts)
            self.clip, self._tokens = knowing, tuple(word.token for word in words)
        try:
            yield
        finally:
            self.clip, self._tokens = before

    def _encoded(self, prompt: str) -> Any:
        return encode_prompt_with_gradient(self.clip, spelt_out(prompt, self._tokens))

    def kept(self, conditioning: Any, size: tuple[int, ...], frame: Frame | None = None) -> dict[str, Any]:
        """The model's conditions for one conditioning, latent size and frame, made once, free of inference mode."""
        one = self._kept.pop(id(conditioning), None) or _Kept(conditioning, _ordinary(conditioning, self.device))
        self._kept[id(conditioning)] = one
        if (size, frame) not in one.made:
            one.made[size, frame] = self._prepare(one.ordinary, size, frame)
            self._forget()
        return one.made[size, frame]

    def _forget(self) -> None:
        """All but the latest prompts, so many as there is room for; the last one in any case."""
        room = MOST_BYTES
        for place, one in reversed([*self._kept.items()]):
            room -= _bytes_of(one.ordinary)
            if room < 0 and place != next(reversed(self._kept)):
                del self._kept[place]

    def arguments(self, conditioning: Any, size: tuple[int, ...]) -> Arguments:
        """The arguments for a batch of one."""
        return _collate([self.kept(conditioning, size)])

    def _frame(self, example: Example) -> Frame | None:
        return example.frames[0] if example.frames and isinstance(self.model, SIZED) else None

    def _prepare(self, conditioning: Any, size: tuple[int, ...], frame: Frame | None) -> dict[str, Any]:
        """Without a frame the sizes are those that the conditioning itself carries, or the latent's."""
        entries = comfy.sampler_helpers.convert_cond(conditioning)
        if len(entries) != 1:
            raise ValueError(f"a prompt's conditioning has {len(entries)} parts; training takes one part per image")
        sizes = asdict(frame) if frame is not None else {}
        if self.model.model_config.unet_config.get("guidance_embed"):
            entries[0].setdefault("guidance", GUIDANCE)
        noise = torch.zeros((1, *size), device=self.device)
        (entry,) = comfy.samplers.encode_model_conds(
            self.model.extra_conds, [{**entries[0], **sizes}], noise, self.device, "positive", latent_image=noise
        )
        conditions = entry["model_conds"]
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in conditions.items()}


def _distinct(examples: Sequence[Example]) -> list[str]:
    return list(dict.fromkeys(example.prompt for example in examples if example.prompt is not None))


def _collate(prepared: Sequence[dict[str, Any]]) -> Arguments | tuple[Arguments, ...]:
    """One batch of arguments from single ones, joined as the core joins them; one by one where it cannot join them."""
    first, *others = prepared
    if not others:
        return {name: cond.cond for name, cond in first.items()}
    if not all(_joins(first, other) for other in others):
        return tuple(_collate([single]) for single in prepared)
    return {name: cond.concat([other[name] for other in others]) for name, cond in first.items()}


def _joins(first: dict[str, Any], other: dict[str, Any]) -> bool:
    return first.keys() == other.keys() and all(cond.can_concat(other[name]) for name, cond in first.items())


def _ordinary(value: Any, device: torch.device) -> Any:
    """A copy on the device in which every tensor is an ordinary one: autograd cannot keep inference tensors."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: _ordinary(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_ordinary(item, device) for item in value)
    return value


def _bytes_of(value: Any) -> int:
    """Of all tensors in it."""
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_bytes_of, parts))
