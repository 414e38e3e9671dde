"""From pictures and texts to a Subject: sizes, latents, conditioning, each made once."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import check_number
from .pictures import bucket_size, fit_picture
from .subject import Example, Subject

CHANNELS = (1, 3, 4)
NO_MASK = (64, 64)
"""Size of the black mask that ComfyUI's Load Image gives for a picture without transparency."""


@dataclass(frozen=True)
class Tools:
    """The model parts that gathering needs.

    Args:
        encode: pictures ``[B, 3, H, W]`` in [0, 1] -> latents ``[B, C, h, w]``.
        embed: prompt -> conditioning.
        cell: pixels per side of a latent cell.
        progress: called with (pictures done, of).
    """

    encode: Callable[[Tensor], Tensor]
    embed: Callable[[str], Any]
    cell: int
    progress: Callable[[int, int], None]


@dataclass(frozen=True)
class Pictures:
    """Pictures as given: each ``[H, W, C]`` in [0, 1], with one text each and perhaps a mask ``[H, W]``."""

    images: Sequence[Tensor]
    prompts: Sequence[str]
    masks: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Framing:
    """How pictures are brought to size: see :func:`.pictures.bucket_size`; ``flip`` adds the mirror image."""

    resolution: int = 512
    bucket: bool = True
    flip: bool = False


def gather(
    subject: Pictures, class_pictures: Pictures | None, framing: Framing, tools: Tools, class_prompt: str = ""
) -> Subject:
    """Encode everything once.

    Raises:
        ValueError: no picture, one smaller than a latent cell, or masks that do not fit; the input is named.
    """
    check_number("resolution", framing.resolution, tools.cell)
    _check("images", subject, tools.cell)
    if class_pictures is not None:
        _check("class_images", class_pictures, tools.cell)
    embedded = {"": tools.embed("")}
    total = len(subject.images) + (len(class_pictures.images) if class_pictures else 0)
    done = 0
    examples: list[list[Example]] = [[], []]
    notes: list[list[str]] = [[], []]
    for part, pictures in enumerate([subject, class_pictures]):
        for index in range(len(pictures.images) if pictures else 0):
            prompt = pictures.prompts[index]
            if prompt not in embedded:
                embedded[prompt] = tools.embed(prompt)
            example, note = _example(pictures, index, framing, tools, embedded[prompt])
            examples[part].append(example)
            notes[part].append(note)
            done += 1
            tools.progress(done, total)
    each = [f"image {index}: {note}" for index, note in enumerate(notes[0], 1)]
    classes = [f"{count} class images: {note}" for note, count in Counter(notes[1]).items()]
    return Subject(
        tuple(examples[0]), tuple(examples[1]), embedded[""], tools.embed(class_prompt) if class_prompt else None,
        class_prompt or None, (*each, *classes),
    )  # fmt: skip


def prompts_for(count: int, prompt: str, captions: Sequence[str] | None) -> list[str]:
    """One text per picture: the captions, or the prompt for all.

    Raises:
        ValueError: there are not as many captions as pictures, or no text at all.
    """
    if captions is not None:
        if len(captions) != count:
            raise ValueError(f"captions holds {len(captions)} texts for {count} images; give one per image, or none")
        if empty := [str(i + 1) for i, caption in enumerate(captions) if not caption.strip()]:
            raise ValueError(f"captions: text {', '.join(empty)} is empty; say what the picture shows")
        return list(captions)
    if not prompt.strip():
        raise ValueError("prompt is empty; give one that names the subject, such as 'a photo of sks dog'")
    return [prompt] * count


def _check(name: str, pictures: Pictures, cell: int) -> None:
    if not pictures.images:
        raise ValueError(f"{name} holds no image; connect at least one")
    for index, image in enumerate(pictures.images):
        height, width = image.shape[:2]
        if min(height, width) < cell:
            raise ValueError(
                f"{name}: image {index + 1} is {width} x {height} pixels, smaller than one latent cell "
                f"({cell} x {cell}); give larger pictures"
            )
        if image.shape[-1] not in CHANNELS:
            raise ValueError(f"{name}: image {index + 1} has {image.shape[-1]} channels; give grey, RGB or RGBA")
        if not torch.isfinite(image).all():
            raise ValueError(f"{name}: image {index + 1} holds NaN or infinite values; make it again")
    if pictures.masks is not None:
        _check_masks(pictures)


def _check_masks(pictures: Pictures) -> None:
    masks = pictures.masks or ()
    if len(masks) != len(pictures.images):
        raise ValueError(f"masks holds {len(masks)} for {len(pictures.images)} images; give one per image, or none")
    for index, (mask, image) in enumerate(zip(masks, pictures.images, strict=True)):
        if _is_no_mask(mask, image):
            continue
        if not torch.isfinite(mask).all():
            raise ValueError(f"masks: mask {index + 1} holds NaN or infinite values; make it again")
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"masks: mask {index + 1} is {mask.shape[1]} x {mask.shape[0]}, its image "
                f"{image.shape[1]} x {image.shape[0]}; give a mask of the image's size"
            )
        if not (mask > 0).any():
            raise ValueError(f"masks: mask {index + 1} is empty, so image {index + 1} would teach nothing")


def _is_no_mask(mask: Tensor, image: Tensor) -> bool:
    """Load Image's stand-in for "no mask": then everything counts."""
    return tuple(mask.shape) == NO_MASK != tuple(image.shape[:2]) and not mask.any()


def _example(pictures: Pictures, index: int, framing: Framing, tools: Tools, cond: Any) -> tuple[Example, str]:
    image = pictures.images[index]
    size = bucket_size(*image.shape[:2], framing.resolution, tools.cell, framing.bucket)
    pixels = _with_mirror(fit_picture(_rgb(image), *size), framing.flip)
    latents = tools.encode(pixels)
    mask = _mask(pictures, index, framing, size, latents) if pictures.masks is not None else None
    grown = max(size[0] / image.shape[0], size[1] / image.shape[1])
    note = f"{image.shape[1]} x {image.shape[0]} -> {size[1]} x {size[0]}"
    note += f" (enlarged {grown:.1f} times: a larger picture would teach more)" if grown > 1.25 else ""
    return Example(latents, cond, pictures.prompts[index], mask), note


def _mask(pictures: Pictures, index: int, framing: Framing, size: tuple[int, int], latents: Tensor) -> Tensor | None:
    """The picture's mask, framed as the picture, at the latents' size."""
    mask = pictures.masks[index]
    if _is_no_mask(mask, pictures.images[index]):
        return None
    framed = _with_mirror(fit_picture(mask[None, None].float(), *size), framing.flip)
    small = F.interpolate(framed, latents.shape[-2:], mode="area").clamp(0, 1)
    if small.amax() < 1 / 255:
        raise ValueError(
            f"masks: nothing of mask {index + 1} is left after cropping its picture to {size[1]} x {size[0]}; "
            "switch bucket on, or crop the picture yourself"
        )
    return small


def _rgb(image: Tensor) -> Tensor:
    """``[H, W, C]`` of any usual number of channels -> ``[1, 3, H, W]``; alpha is dropped, grey is repeated."""
    channels = image.movedim(-1, 0)[None].float().clamp(0, 1)
    return channels.expand(-1, 3, -1, -1) if channels.shape[1] == 1 else channels[:, :3]


def _with_mirror(pixels: Tensor, flip: bool) -> Tensor:
    return torch.cat([pixels, pixels.flip(-1)]) if flip else pixels
