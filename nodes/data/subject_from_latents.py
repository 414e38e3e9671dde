"""Node that makes a subject from the latents and conditioning of the stock dataset nodes."""

from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ...trainers.data.dataset import Example, Subject
from ..common import sockets
from ..common.node import Node

SAMPLING_OPTIONS: dict[str, Any] = {
    "area": None, "mask": None, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "control": None,
    "gligen": None, "hooks": None,
}  # fmt: skip
"""Entries of a CONDITIONING that nodes for sampling add -> the value with which they have no effect."""


class SubjectFromLatents(Node):
    """Make a subject from latents and conditioning that exist already."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothSubjectFromLatents",
            display_name="Subject from Latents",
            category=f"{sockets.CATEGORY}/data",
            description="Makes a subject from the outputs of the stock dataset nodes (Make Training Dataset, "
            "Resolution Bucket, Load Training Dataset).",
            is_input_list=True,
            inputs=[
                io.Latent.Input(
                    "latents",
                    tooltip="Encoded images, as a list or in batches; of a noise mask, white is learned.",
                ),
                io.Conditioning.Input(
                    "positive", tooltip="Conditioning of their texts: one for all, or one per image."
                ),
                io.Conditioning.Input(
                    "class_positive",
                    optional=True,
                    tooltip="Conditioning of the class images: one for all, or one each.",
                ),
                io.Latent.Input(
                    "class_latents", optional=True, tooltip="Encoded class images, for prior preservation."
                ),
            ],
            outputs=[sockets.Subject.Output(display_name="subject", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(
        cls, latents: list[Any], positive: list[Any], class_positive: list[Any] | None = None,
        class_latents: list[Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        examples = _latent_examples("positive", latents, positive)
        others = _latent_examples("class_positive", class_latents or [], class_positive or [])
        notes = tuple(f"latent {i + 1}: {tuple(e.size)}" for i, e in enumerate(examples))
        class_cond = others[0].cond if others else (class_positive or [None])[0]
        return io.NodeOutput(Subject(examples, others, class_cond=class_cond, notes=notes))


def _latents_one_by_one(latents: list[Any]) -> list[Tensor]:
    """Return single latents ``[1, C, h, w]`` of stock LATENTs, each of which holds a batch or a list of batches."""
    batches = []
    for latent in latents:
        samples = latent["samples"]
        batches += samples if isinstance(samples, (list, tuple)) else [samples]
    if not all(torch.isfinite(sample).all() for sample in batches):
        raise ValueError("latents hold NaN or infinite values; encode the images again")
    singles = [sample if sample.ndim >= 4 else sample[None] for sample in batches]
    return [single[None] for batch in singles for single in batch]


def _masks_one_by_one(name: str, latents: list[Any]) -> list[Tensor | None]:
    """Return a mask ``[1, 1, h, w]`` of each latent: its ``noise_mask``, by Set Latent Noise Mask, or None."""
    masks: list[Tensor | None] = []
    for latent in latents:
        singles = _latents_one_by_one([latent])
        mask = latent.get("noise_mask")
        if mask is None:
            masks += [None] * len(singles)
            continue
        mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
        if len(mask) not in (1, len(singles)) or not torch.isfinite(mask).all():
            raise ValueError(f"{name}: a noise mask has {len(mask)} masks for {len(singles)} latents, or NaN in them")
        small = [F.interpolate(one[None], single.shape[-2:], mode="area").clamp(0, 1)
                 for one, single in zip(mask.expand(len(singles), -1, -1, -1), singles, strict=True)]  # fmt: skip
        if not all(one.any() for one in small):
            raise ValueError(f"{name}: a noise mask is black everywhere, so nothing is learned from its image")
        masks += small
    return masks


def _latent_examples(name: str, batches: list[Any], conds: list[Any]) -> tuple[Example, ...]:
    latents, masks = _latents_one_by_one(batches), _masks_one_by_one(name, batches)
    conds = _conds_one_by_one(batches, conds)
    if len(conds) == 1:
        conds = conds * len(latents)
    if len(conds) != len(latents):
        raise ValueError(f"{name} holds {len(conds)} texts for {len(latents)} latents; give one, or one per latent")
    for cond in conds:
        _require_plain(name, cond)
    with torch.inference_mode(False):
        return tuple(
            Example(latent.clone(), cond, mask=None if mask is None else mask.clone())
            for latent, cond, mask in zip(latents, conds, masks, strict=True)
        )


def _require_plain(name: str, cond: Any) -> None:
    """Require a conditioning that holds for the whole image and the whole course of sampling.

    Raises:
        ValueError: it has an area, a mask, a strength, a span of time, or a control network, which training ignores.
    """
    for _, options in cond:
        ignored = [
            key for key, without in SAMPLING_OPTIONS.items() if key in options and options[key] not in (None, without)
        ]  # fmt: skip
        if ignored:
            raise ValueError(
                f"{name} carries {', '.join(ignored)}, which training does not use; connect the text's own conditioning"
            )


def _conds_one_by_one(batches: list[Any], conds: list[Any]) -> list[Any]:
    """Split the CONDITIONINGs of Resolution Bucket, which hold one entry for each latent of a batch."""
    counts = [len(_latents_one_by_one([batch])) for batch in batches]
    if len(counts) != len(conds) or counts != [len(cond) for cond in conds]:
        return conds
    return [[part] for cond in conds for part in cond]
