"""Node that makes a subject from the latents and conditioning of the stock dataset nodes."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...trainers.data.dataset import Example, Subject
from ..common import sockets
from ..common.node import Node


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
                io.Latent.Input("latents", tooltip="Encoded images, as a list or in batches."),
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


def _latent_examples(name: str, batches: list[Any], conds: list[Any]) -> tuple[Example, ...]:
    latents = _latents_one_by_one(batches)
    conds = _conds_one_by_one(batches, conds)
    if len(conds) == 1:
        conds = conds * len(latents)
    if len(conds) != len(latents):
        raise ValueError(f"{name} holds {len(conds)} texts for {len(latents)} latents; give one, or one per latent")
    with torch.inference_mode(False):
        return tuple(Example(latent.clone(), cond) for latent, cond in zip(latents, conds, strict=True))


def _conds_one_by_one(batches: list[Any], conds: list[Any]) -> list[Any]:
    """Split the CONDITIONINGs of Resolution Bucket, which hold one entry for each latent of a batch."""
    counts = [len(_latents_one_by_one([batch])) for batch in batches]
    if len(counts) != len(conds) or counts != [len(cond) for cond in conds]:
        return conds
    return [[part] for cond in conds for part in cond]
