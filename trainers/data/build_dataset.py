"""Building the dataset: images and texts are resized, cropped and encoded, each once."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.validation import is_finite
from ..checks import check_number
from .augmentation import Augmentation, View, draw_views
from .dataset import Example, Subject
from .preprocessing_report import ImagePlan, class_notes, image_notes
from .resize import bucket_size

CHANNELS = (1, 3, 4)
NO_MASK = (64, 64)
"""Size of the black mask that ComfyUI's Load Image outputs for an image without transparency."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The model's encoders, as the dataset needs them.

    Args:
        encode_image: images ``[B, 3, H, W]`` in [0, 1] -> latents ``[B, C, h, w]``.
        encode_prompt: prompt -> conditioning.
        latent_cell: pixels per side of a latent cell.
        on_progress: called with (variants encoded, total).
    """

    encode_image: Callable[[Tensor], Tensor]
    encode_prompt: Callable[[str], Any]
    latent_cell: int
    on_progress: Callable[[int, int], None]


@dataclass(frozen=True)
class SourceImages:
    """Images as the user gives them.

    Args:
        images: each ``[H, W, C]`` in [0, 1], of any size.
        prompts: one text per image.
        masks: one ``[H, W]`` per image, or None.
    """

    images: Sequence[Tensor]
    prompts: Sequence[str]
    masks: Sequence[Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Configure how images are cropped and resized, see :func:`.resize.bucket_size`.

    Args:
        resolution: training resolution in pixels.
        bucket: keep the aspect ratio; otherwise crop to squares.
        flip: add mirror images.
    """

    resolution: int = 512
    bucket: bool = True
    flip: bool = False


NO_AUGMENTATION = Augmentation()


def build_dataset(
    subject: SourceImages,
    framing: Framing,
    encoders: Encoders,
    *,
    class_images: SourceImages | None = None,
    class_prompt: str = "",
    augmentation: Augmentation = NO_AUGMENTATION,
) -> Subject:
    """Preprocess and encode every image and every prompt once.

    Args:
        subject: images of the subject.
        framing: sizes and crops of all images.
        encoders: of the model to train.
        class_images: images of the class for prior preservation. They are not augmented: they stand for what the
            model generates by itself.
        class_prompt: encoded for prior preservation without class images; "" for none.
        augmentation: variants of the subject's images.

    Raises:
        ValueError: there is no image, one is smaller than a latent cell, or the masks do not fit; the message names
            the input.
    """
    check_number("resolution", framing.resolution, encoders.latent_cell)
    _check_images("images", subject, encoders.latent_cell)
    if class_images is not None:
        _check_images("class_images", class_images, encoders.latent_cell)
    plans = _plan(subject, framing, encoders.latent_cell, augmentation)
    class_plans = _plan(class_images, framing, encoders.latent_cell, NO_AUGMENTATION) if class_images else []
    notes = (*image_notes(plans, framing.flip, augmentation), *class_notes(class_plans))
    return replace(_encode_all(plans, class_plans, class_prompt, encoders), notes=notes)


def _encode_all(
    plans: Sequence[ImagePlan], class_plans: Sequence[ImagePlan], class_prompt: str, encoders: Encoders
) -> Subject:
    """Encode every prompt once, then every variant of every image."""
    prompts = ("", *_prompts(plans), *_prompts(class_plans), *([class_prompt] if class_prompt else []))
    conds = {prompt: encoders.encode_prompt(prompt) for prompt in dict.fromkeys(prompts)}
    progress = _Progress(encoders.on_progress, sum(len(plan.views) for plan in (*plans, *class_plans)))
    known: Latents = {}
    examples, class_examples = (
        tuple(_encode(plan, encoders, conds[plan.prompt], progress, known) for plan in part)
        for part in (plans, class_plans)
    )
    return Subject(
        examples,
        class_examples,
        unconditional=conds[""],
        class_cond=conds[class_prompt] if class_prompt else None,
        class_prompt=class_prompt or None,
    )


def _plan(source: SourceImages, framing: Framing, cell: int, augmentation: Augmentation) -> list[ImagePlan]:
    """Return the preprocessing of each image."""
    plans = []
    for index, (image, prompt) in enumerate(zip(source.images, source.prompts, strict=True)):
        shape = tuple(image.shape[:2])
        size = bucket_size(*shape, framing.resolution, cell, framing.bucket)
        mask = None if source.masks is None else _effective_mask(source.masks[index], image)
        views = draw_views(shape, size, augmentation, flip=framing.flip, index=index, mask=mask)
        plans.append(ImagePlan(index=index, image=image, prompt=prompt, mask=mask, size=size, views=views))
    return plans


def _prompts(plans: Sequence[ImagePlan]) -> list[str]:
    return [plan.prompt for plan in plans]


class _Progress:
    """Count the encoded variants and report each."""

    def __init__(self, on_progress: Callable[[int, int], None], total: int):
        self._on_progress, self._total, self._done = on_progress, total, 0

    def advance(self) -> None:
        self._done += 1
        self._on_progress(self._done, self._total)


Latents = dict[tuple[int, tuple[int, ...], View, tuple[int, int]], Tensor]
"""(address and shape of an image, variant, size) -> latents: an image that is given several times is encoded once."""


def _encode(plan: ImagePlan, encoders: Encoders, cond: Any, progress: _Progress, known: Latents) -> Example:
    """Encode the variants of an image.

    Args:
        plan: its preprocessing.
        encoders: VAE and text encoder.
        cond: the conditioning of its prompt.
        progress: of all images.
        known: the latents so far, extended here.
    """
    pixels, latents = _rgb(plan.image), []
    for view in plan.views:
        key = (plan.image.data_ptr(), tuple(plan.image.shape), view, plan.size)
        if key not in known:
            known[key] = encoders.encode_image(view.render(pixels, plan.size))
        if not is_finite(known[key], math.inf):
            raise ValueError(
                f"vae gives NaN or infinite values for image {plan.index + 1}; load it in float32, or another one, or "
                "leave the image out"
            )
        latents.append(known[key])
        progress.advance()
    encoded = torch.cat(latents)
    frames = tuple(view.frame(*plan.shape, plan.size) for view in plan.views)
    return Example(encoded, cond, plan.prompt, _latent_masks(plan, encoded), frames)


def _latent_masks(plan: ImagePlan, latents: Tensor) -> Tensor | None:
    """Return the mask of every variant at the size of the latents, ``[variants, 1, h, w]``."""
    if plan.mask is None:
        return None
    cropped = torch.cat([view.apply_to_mask(plan.mask[None, None].float(), plan.size) for view in plan.views])
    small = F.interpolate(cropped, latents.shape[-2:], mode="area").clamp(0, 1)
    if small[0].amax() < 1 / 255:
        raise ValueError(
            f"masks: nothing of mask {plan.index + 1} is left after cropping its image to "
            f"{plan.size[1]} x {plan.size[0]}; switch bucket on, or crop the image yourself"
        )
    return small


def literal(caption: str) -> str:
    """Return a caption with its brackets escaped, so that a prompt's parser takes them as text and not as weights."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", caption)


def prompts_for(count: int, prompt: str, captions: Sequence[str] | None) -> list[str]:
    """Return one text per image: its caption, or the prompt where the caption is missing or empty.

    Args:
        count: number of images.
        prompt: the common text.
        captions: one text per image, or None.

    Raises:
        ValueError: the number of captions differs from ``count``, or an image has no text at all.
    """
    if captions is not None and len(captions) != count:
        raise ValueError(f"captions holds {len(captions)} texts for {count} images; give one per image, or none")
    texts = [(caption.strip() and caption) or prompt for caption in captions or [""] * count]
    empty = [str(index) for index, text in enumerate(texts, 1) if not text.strip()]
    if empty and captions is not None:
        raise ValueError(
            f"captions: text {', '.join(empty)} is empty, and so is prompt; describe the image, or give a prompt for "
            "images without a caption"
        )
    if empty:
        raise ValueError("prompt is empty; give one that names the subject, such as 'a photo of sks dog'")
    return texts


def _check_images(name: str, source: SourceImages, cell: int) -> None:
    if not source.images:
        raise ValueError(f"{name} holds no image; connect at least one")
    for number, image in enumerate(source.images, 1):
        height, width = image.shape[:2]
        if min(height, width) < cell:
            raise ValueError(
                f"{name}: image {number} is {width} x {height} pixels, smaller than one latent cell "
                f"({cell} x {cell}); give larger images"
            )
        if image.shape[-1] not in CHANNELS:
            raise ValueError(f"{name}: image {number} has {image.shape[-1]} channels; give gray, RGB or RGBA")
        if not torch.isfinite(image).all():
            raise ValueError(f"{name}: image {number} holds NaN or infinite values; make it again")
    if source.masks is not None:
        _check_masks(source.masks, source.images)


def _check_masks(masks: Sequence[Tensor], images: Sequence[Tensor]) -> None:
    if len(masks) != len(images):
        raise ValueError(f"masks holds {len(masks)} for {len(images)} images; give one per image, or none")
    for number, (mask, image) in enumerate(zip(masks, images, strict=True), 1):
        if _is_no_mask(mask, image):
            continue
        if not torch.isfinite(mask).all():
            raise ValueError(f"masks: mask {number} holds NaN or infinite values; make it again")
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"masks: mask {number} is {mask.shape[1]} x {mask.shape[0]}, its image "
                f"{image.shape[1]} x {image.shape[0]}; give a mask of the image's size"
            )
        if not (mask > 0).any():
            raise ValueError(f"masks: mask {number} is black everywhere, so nothing is learned from image {number}")


def _is_no_mask(mask: Tensor, image: Tensor) -> bool:
    """Return whether the mask is Load Image's placeholder for "no mask"."""
    return tuple(mask.shape) == NO_MASK != tuple(image.shape[:2]) and not mask.any()


def _effective_mask(mask: Tensor, image: Tensor) -> Tensor | None:
    """Return the mask, or None if it is white everywhere or a placeholder."""
    return None if _is_no_mask(mask, image) or bool((mask >= 1).all()) else mask


def _rgb(image: Tensor) -> Tensor:
    """Return ``[H, W, C]`` as ``[1, 3, H, W]``: alpha is dropped, gray is repeated."""
    channels = image.movedim(-1, 0)[None].float().clamp(0, 1)
    return channels.expand(-1, 3, -1, -1) if channels.shape[1] == 1 else channels[:, :3]
