"""What is learnt: pictures of the subject, from photographs or from the stock dataset nodes."""

import re
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..trainers.gather import Framing, Pictures, Tools, gather, prompts_for
from ..trainers.subject import Example
from ..trainers.subject import Subject as SubjectData
from . import sockets
from .bridge.conditions import encode_prompt
from .bridge.pixels import encode_pixels, latent_cell
from .bridge.progress import Progress

FRAMING = Framing()


class Subject(io.ComfyNode):
    """Pictures and prompt -> subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothSubject",
            display_name="Subject",
            category=f"{sockets.CATEGORY}/data",
            description="Prepares photographs of one subject for training: brings them to size, encodes them and "
            "the prompt once.",
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="3 to 20 photographs of the subject: a batch, or a list of any sizes."
                ),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE. It leaves the device before training starts."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder. It leaves the device before training."),
                io.String.Input(
                    "prompt",
                    default="a photo of sks dog",
                    multiline=True,
                    tooltip="What the photographs show, with a rare word as the subject's name: 'a photo of sks dog'. "
                    "Use the same words later to call it up.",
                ),
                io.String.Input(
                    "class_prompt",
                    optional=True,
                    default="",
                    tooltip="The class without the name: 'a photo of a dog'. Needed for prior preservation.",
                ),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="One text per image in place of the prompt: a list, or one text with a line per image.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask per image, of its size: where it is black, nothing is learnt.",
                ),
                io.Image.Input(
                    "class_images",
                    optional=True,
                    tooltip="Pictures of the class for prior preservation, from the Class Images node: they keep "
                    "other dogs from turning into yours.",
                ),
                io.Int.Input(
                    "resolution",
                    default=FRAMING.resolution,
                    min=8,
                    max=4096,
                    step=8,
                    tooltip="Training resolution in pixels: 512 for SD1.5, 1024 for SDXL and later.",
                ),
                io.Boolean.Input(
                    "bucket",
                    default=FRAMING.bucket,
                    tooltip="Keep each picture's aspect at this area; off: crop to squares.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=FRAMING.flip,
                    tooltip="Also train on mirror images. Leave off for faces and for things with writing on them.",
                ),
            ],
            outputs=[sockets.Subject.Output(display_name="subject", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(
        cls, images: list[Tensor], vae: list[Any], clip: list[Any], prompt: list[str], resolution: list[int],
        bucket: list[bool], flip: list[bool], class_prompt: list[str] | None = None,
        captions: list[str] | None = None, masks: list[Tensor] | None = None,
        class_images: list[Tensor] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        pictures = _one_by_one(images)
        texts = prompts_for(len(pictures), only("prompt", prompt), _lines(captions, len(pictures)))
        subject = Pictures(pictures, texts, _one_by_one(masks) if masks else None)
        class_text = only("class_prompt", class_prompt or [""]).strip()
        others = _class_pictures(_one_by_one(class_images or []), class_text)
        framing = Framing(only("resolution", resolution), only("bucket", bucket), only("flip", flip))
        total = len(pictures) + (len(others.images) if others else 0)
        tools = _tools(only("vae", vae), only("clip", clip), total)
        return io.NodeOutput(gather(subject, others, framing, tools, class_text))


class SubjectFromLatents(io.ComfyNode):
    """Latents and conditioning of the stock dataset nodes -> subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothSubjectFromLatents",
            display_name="Subject from Latents",
            category=f"{sockets.CATEGORY}/data",
            description="A subject from what the stock dataset nodes (Make Training Dataset, Resolution Bucket, "
            "Load Training Dataset) give.",
            is_input_list=True,
            inputs=[
                io.Latent.Input("latents", tooltip="Encoded pictures, as a list or in batches."),
                io.Conditioning.Input("positive", tooltip="Their texts: one for all, or one per picture."),
                io.Conditioning.Input(
                    "class_positive", optional=True, tooltip="Text of the class pictures: one for all, or one each."
                ),
                io.Latent.Input("class_latents", optional=True, tooltip="Class pictures for prior preservation."),
            ],
            outputs=[sockets.Subject.Output(display_name="subject", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(
        cls, latents: list[Any], positive: list[Any], class_positive: list[Any] | None = None,
        class_latents: list[Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        examples = _latent_examples("positive", _latents_one_by_one(latents), positive)
        others = _latent_examples("class_positive", _latents_one_by_one(class_latents or []), class_positive or [])
        notes = tuple(f"latent {i + 1}: {tuple(e.size)}" for i, e in enumerate(examples))
        class_cond = (class_positive or [None])[0]
        return io.NodeOutput(SubjectData(examples, others, class_cond=class_cond, notes=notes))


def _one_by_one(batches: list[Tensor]) -> list[Tensor]:
    """A list of batches -> a list of single pictures or masks."""
    return [picture for batch in batches for picture in batch]


def _latents_one_by_one(latents: list[Any]) -> list[Tensor]:
    """Stock LATENTs, each holding a batch or a list of batches, -> single latents ``[1, C, h, w]``."""
    batches = []
    for latent in latents:
        samples = latent["samples"]
        batches += samples if isinstance(samples, (list, tuple)) else [samples]
    if not all(torch.isfinite(sample).all() for sample in batches):
        raise ValueError("latents hold NaN or infinite values; encode the pictures again")
    singles = [sample if sample.ndim >= 4 else sample[None] for sample in batches]
    return [single[None] for batch in singles for single in batch]


def _latent_examples(name: str, latents: list[Tensor], conds: list[Any]) -> tuple[Example, ...]:
    if len(conds) == 1:
        conds = conds * len(latents)
    if len(conds) != len(latents):
        raise ValueError(f"{name} holds {len(conds)} texts for {len(latents)} latents; give one, or one per latent")
    with torch.inference_mode(False):
        return tuple(Example(latent.clone(), cond) for latent, cond in zip(latents, conds, strict=True))


def only(name: str, values: list[Any]) -> Any:
    """The one value of an input that does not take a list.

    Raises:
        ValueError: a list with several is connected, of which all but the first would be lost.
    """
    if any(value is not values[0] and value != values[0] for value in values[1:]):
        hint = "; one text per image goes into captions" if name == "prompt" else ""
        raise ValueError(f"{name} received {len(values)} different values; connect one{hint}")
    return values[0]


def _lines(captions: list[str] | None, images: int) -> list[str] | None:
    """A list of captions as it is; a single text is a line per image, or one image's whole text."""
    if captions is not None and len(captions) == 1 and images > 1:
        return [line.strip() for line in re.split(r"\r?\n", captions[0]) if line.strip()]
    return captions


def _class_pictures(images: list[Tensor], class_prompt: str) -> Pictures | None:
    if not images:
        return None
    if not class_prompt.strip():
        raise ValueError(
            "class_prompt is empty although class_images are connected; give one such as 'a photo of a dog'"
        )
    return Pictures(images, [class_prompt] * len(images))


def _tools(vae: Any, clip: Any, total: int) -> Tools:
    return Tools(
        encode=lambda pixels: encode_pixels(vae, pixels),
        embed=lambda prompt: encode_prompt(clip, prompt),
        cell=latent_cell(vae),
        progress=Progress(total),
    )
