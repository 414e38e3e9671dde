"""From pictures and texts to a Subject: sizes, latents, conditioning, each made once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.checks import check_number
from .augmentation import Augmentation, views
from .dataset import Example, Subject
from .preprocessing_report import ImagePlan, class_notes, image_notes
from .resize import bucket_size

CHANNELS = (1, 3, 4)
NO_MASK = (64, 64)
"""Size of the black mask that ComfyUI's Load Image gives for a picture without transparency."""


@dataclass(frozen=True)
class Encoders:
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
class SourceImages:
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


PLAIN = Augmentation()


def build_dataset(
    subject: SourceImages,
    class_pictures: SourceImages | None,
    framing: Framing,
    tools: Encoders,
    class_prompt: str = "",
    augmentation: Augmentation = PLAIN,
) -> Subject:
    """Encode everything once. Class pictures are not augmented: they stand for what the model makes by itself.

    Raises:
        ValueError: no picture, one smaller than a latent cell, or masks that do not fit; the input is named.
    """
    check_number("resolution", framing.resolution, tools.cell)
    _check("images", subject, tools.cell)
    if class_pictures is not None:
        _check("class_images", class_pictures, tools.cell)
    jobs = _plan(subject, framing, tools.cell, augmentation)
    class_jobs = _plan(class_pictures, framing, tools.cell, PLAIN) if class_pictures else []
    count = _Count(tools.progress, sum(len(job.views) for job in (*jobs, *class_jobs)))
    prompts = ("", *_prompts(jobs), *_prompts(class_jobs), *([class_prompt] if class_prompt else []))
    embedded = {prompt: tools.embed(prompt) for prompt in dict.fromkeys(prompts)}
    made = [[_example(job, tools, embedded[job.prompt], count) for job in part] for part in (jobs, class_jobs)]
    notes = (*image_notes(jobs, framing.flip, augmentation), *class_notes(class_jobs))
    class_cond = embedded[class_prompt] if class_prompt else None
    return Subject(tuple(made[0]), tuple(made[1]), embedded[""], class_cond, class_prompt or None, notes)


def _plan(pictures: SourceImages, framing: Framing, cell: int, augmentation: Augmentation) -> list[ImagePlan]:
    """What is to be made of each picture."""
    jobs = []
    for index, (image, prompt) in enumerate(zip(pictures.images, pictures.prompts, strict=True)):
        shape = tuple(image.shape[:2])
        size = bucket_size(*shape, framing.resolution, cell, framing.bucket)
        mask = None if pictures.masks is None else _counting(pictures.masks[index], image)
        drawn = views(shape, size, framing.flip, augmentation, index, mask)
        jobs.append(ImagePlan(index, image, prompt, mask, size, drawn))
    return jobs


def _prompts(jobs: Sequence[ImagePlan]) -> list[str]:
    return [job.prompt for job in jobs]


class _Count:
    """Progress, one for each version encoded."""

    def __init__(self, progress: Callable[[int, int], None], total: int):
        self._progress, self._total, self._done = progress, total, 0

    def one_more(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


def _example(job: ImagePlan, tools: Encoders, cond: Any, count: _Count) -> Example:
    pixels, latents = _rgb(job.image), []
    for view in job.views:
        latents.append(tools.encode(view.picture(pixels, job.size)))
        count.one_more()
    encoded = torch.cat(latents)
    frames = tuple(view.frame(*job.shape, job.size) for view in job.views)
    return Example(encoded, cond, job.prompt, _masks(job, encoded), frames)


def _masks(job: ImagePlan, latents: Tensor) -> Tensor | None:
    """The picture's mask in every version, at the latents' size."""
    if job.mask is None:
        return None
    framed = torch.cat([view.mask(job.mask[None, None].float(), job.size) for view in job.views])
    small = F.interpolate(framed, latents.shape[-2:], mode="area").clamp(0, 1)
    if small[0].amax() < 1 / 255:
        raise ValueError(
            f"masks: nothing of mask {job.index + 1} is left after cropping its picture to "
            f"{job.size[1]} x {job.size[0]}; switch bucket on, or crop the picture yourself"
        )
    return small


def prompts_for(count: int, prompt: str, captions: Sequence[str] | None) -> list[str]:
    """One text per picture: its caption, or the prompt where there is none or an empty one.

    Raises:
        ValueError: there are not as many captions as pictures, or no text at all.
    """
    if captions is not None and len(captions) != count:
        raise ValueError(f"captions holds {len(captions)} texts for {count} images; give one per image, or none")
    texts = [(caption.strip() and caption) or prompt for caption in captions or [""] * count]
    empty = [str(index) for index, text in enumerate(texts, 1) if not text.strip()]
    if empty and captions is not None:
        raise ValueError(
            f"captions: text {', '.join(empty)} is empty, and so is prompt; say what the picture shows, "
            "or give a prompt for those without a caption"
        )
    if empty:
        raise ValueError("prompt is empty; give one that names the subject, such as 'a photo of sks dog'")
    return texts


def _check(name: str, pictures: SourceImages, cell: int) -> None:
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


def _check_masks(pictures: SourceImages) -> None:
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


def _counting(mask: Tensor, image: Tensor) -> Tensor | None:
    """The mask, or None if everything counts: it is white all over, or stands for none."""
    return None if _is_no_mask(mask, image) or bool((mask >= 1).all()) else mask


def _rgb(image: Tensor) -> Tensor:
    """``[H, W, C]`` of any usual number of channels -> ``[1, 3, H, W]``; alpha is dropped, grey is repeated."""
    channels = image.movedim(-1, 0)[None].float().clamp(0, 1)
    return channels.expand(-1, 3, -1, -1) if channels.shape[1] == 1 else channels[:, :3]
