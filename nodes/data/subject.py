"""Node that prepares images of a subject as a training dataset."""

import re
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...trainers.data.augmentation import MAX_STRENGTH, MAX_VARIANTS, Augmentation
from ...trainers.data.build_dataset import Encoders, Framing, SourceImages, build_dataset, literal, prompts_for
from ..bridge.images.vae import encode_pixels, latent_cell
from ..bridge.progress import Progress
from ..bridge.text.conditioning import encode_prompt
from ..common import sockets
from ..common.list_inputs import single_value, unbatch
from ..common.node import Node

FRAMING = Framing()


class Subject(Node):
    """Encode images and their prompts as a subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothSubject",
            display_name="Subject",
            category=f"{sockets.CATEGORY}/data",
            description="Prepares images of one subject for training: resizes them, and encodes them and the prompt "
            "once.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="3 to 20 images of the subject: a batch, or a list of any sizes."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE. It leaves the device before training starts."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder. It leaves the device before training."),
                io.String.Input(
                    "prompt",
                    default="a photo of sks dog",
                    multiline=True,
                    tooltip="What the images show, with a rare word as the subject's identifier: 'a photo of sks dog'. "
                    "Later prompts use the same words.",
                ),
                io.String.Input(
                    "class_prompt",
                    optional=True,
                    default="",
                    tooltip="The class without the identifier: 'a photo of a dog'. Needed for prior preservation.",
                ),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="One caption per image in place of the prompt: a list, or one text with a line per image. "
                    "An empty caption in the list stands for the prompt.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask per image, of its size: white (1) is learned, where it is black nothing is. The "
                    "MASK of Load Image is 1 where a cut-out image is transparent: put Invert Mask between.",
                ),
                io.Image.Input(
                    "class_images",
                    optional=True,
                    tooltip="Images of the class for prior preservation, from the Class Images node: they keep other "
                    "dogs from turning into yours.",
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
                    tooltip="Keep each image's aspect ratio at this area; off: crop to squares.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=FRAMING.flip,
                    tooltip="Also train on mirrored images. Leave off for faces and for things with writing on them.",
                ),
                *_augmentation_inputs(),
                io.Boolean.Input(
                    "literal_captions",
                    optional=True,
                    default=True,
                    tooltip="Captions are read as they stand, so that 'name (series)' keeps its brackets, as in other "
                    "trainers. Off: brackets weight words, as in prompts.",
                ),
            ],
            outputs=[sockets.Subject.Output(display_name="subject", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(
        cls, images: list[Tensor], vae: list[Any], clip: list[Any], prompt: list[str], resolution: list[int],
        bucket: list[bool], flip: list[bool], class_prompt: list[str] | None = None,
        captions: list[str] | None = None, masks: list[Tensor] | None = None,
        class_images: list[Tensor] | None = None, variants: list[int] | None = None,
        crop: list[float] | None = None, colour: list[float] | None = None, augment_seed: list[int] | None = None,
        literal_captions: list[bool] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        augmentation = _augmentation(variants=variants, crop=crop, color=colour, seed=augment_seed)
        pixels = unbatch(images)
        text = single_value("prompt", prompt, "one text per image goes into captions")
        lines = _lines(captions, len(pixels))
        if lines is not None and single_value("literal_captions", literal_captions or [True]):
            lines = [literal(line) for line in lines]
        texts = prompts_for(len(pixels), text, lines)
        subject = SourceImages(pixels, texts, unbatch(masks) if masks else None)
        class_text = single_value("class_prompt", class_prompt or [""]).strip()
        others = _class_images(unbatch(class_images or []), class_text)
        framing = Framing(
            resolution=single_value("resolution", resolution),
            bucket=single_value("bucket", bucket),
            flip=single_value("flip", flip),
        )
        total = len(pixels) + (len(others.images) if others else 0)
        encoders = _encoders(single_value("vae", vae), single_value("clip", clip), total)
        dataset = build_dataset(
            subject, framing, encoders, class_images=others, class_prompt=class_text, augmentation=augmentation
        )
        return io.NodeOutput(dataset)


def _augmentation_inputs() -> list[io.Input]:
    keep, defaults = io.ControlAfterGenerate.fixed, Augmentation()
    return [
        io.Int.Input(
            "variants",
            optional=True,
            default=defaults.variants,
            min=1,
            max=MAX_VARIANTS,
            tooltip="Random variants of each image by crop and colour; every step takes one. All are encoded before "
            "training: encoding takes longer, training needs no more memory. 8 to 16 when augmenting.",
        ),
        io.Float.Input(
            "crop",
            optional=True,
            default=defaults.crop,
            min=0.0,
            max=MAX_STRENGTH,
            step=0.01,
            tooltip="How far a random crop may zoom in: 0 is off, 0.2 leaves four fifths of each side. Needs variants.",
        ),
        io.Float.Input(
            "colour",
            optional=True,
            default=defaults.color,
            min=0.0,
            max=MAX_STRENGTH,
            step=0.01,
            tooltip="How much brightness, contrast, saturation and (a little) hue vary: 0 is off, 0.1 is subtle. "
            "Leave off where color is what makes the subject. Needs variants.",
        ),
        io.Int.Input(
            "augment_seed",
            optional=True,
            default=defaults.seed,
            min=0,
            max=2**64 - 1,
            control_after_generate=keep,
            tooltip="Same seed, same variants.",
        ),
    ]


def _augmentation(**inputs: list[Any] | None) -> Augmentation:
    """Return the augmentation of the inputs that are given; workflows saved by older versions lack some."""
    return Augmentation(**{name: single_value(name, values) for name, values in inputs.items() if values})


def _lines(captions: list[str] | None, images: int) -> list[str] | None:
    """Return a list of captions unchanged; split a single text for several images into its lines."""
    if captions is not None and len(captions) == 1 and images > 1:
        return [line.strip() for line in re.split(r"\r?\n", captions[0]) if line.strip()]
    return captions


def _class_images(images: list[Tensor], class_prompt: str) -> SourceImages | None:
    if not images:
        return None
    if not class_prompt.strip():
        raise ValueError(
            "class_prompt is empty although class_images are connected; give one such as 'a photo of a dog'"
        )
    return SourceImages(images, [class_prompt] * len(images))


def _encoders(vae: Any, clip: Any, total: int) -> Encoders:
    return Encoders(
        encode_image=lambda pixels: encode_pixels(vae, pixels),
        encode_prompt=lambda prompt: encode_prompt(clip, prompt),
        latent_cell=latent_cell(vae),
        on_progress=Progress(total),
    )
