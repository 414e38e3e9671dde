"""The preprocessing report: sizes, crops and variants of every image before training."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .augmentation import Augmentation, View

MAX_ENLARGEMENT = 1.25
"""Scale above which the report remarks that the image is small."""
MIN_MASK = 0.05
"""Share of an image, or of its central third, below which the report doubts the mask."""
MAX_CROPPED = 0.2
"""Share of the area above which the report remarks on the crop."""


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """Describe how one image is preprocessed.

    Args:
        index: of the image in the dataset, from 0.
        image: ``[H, W, C]`` in [0, 1].
        prompt: its text.
        mask: ``[H, W]``, or None if every pixel counts.
        size: (height, width) it is resized to.
        views: the variants to encode.
    """

    index: int
    image: Tensor
    prompt: str
    mask: Tensor | None
    size: tuple[int, int]
    views: Sequence[View]

    @property
    def shape(self) -> tuple[int, int]:
        """The (height, width) of the image in pixels."""
        return self.image.shape[0], self.image.shape[1]


def image_notes(plans: Sequence[ImagePlan], flip: bool, augmentation: Augmentation) -> list[str]:
    """Return the report on the subject's images: totals, then one line per image, then duplicates.

    Args:
        plans: one per image.
        flip: whether mirror images are added.
        augmentation: of the variants.
    """
    notes = [f"sizes: {_buckets(plans)}"] if len(plans) > 1 else []
    masked = sum(plan.mask is not None for plan in plans)
    notes += [f"masks: {masked} of {len(plans)} images"] if masked else []
    notes += _variant_notes(len(plans[0].views), flip, augmentation)
    notes += [f"image {plan.index + 1}: {_describe_resize(plan)}{_describe_mask(plan)}" for plan in plans]
    notes += [f"warning: {doubt}" for doubt in map(_mask_doubt, plans) if doubt]
    return notes + _duplicates(plans)


def class_notes(plans: Sequence[ImagePlan]) -> list[str]:
    """Return one line for each distinct preprocessing of class images."""
    return [f"{count} class images: {note}" for note, count in Counter(map(_describe_resize, plans)).items()]


def _buckets(plans: Sequence[ImagePlan]) -> str:
    counted = Counter(plan.size for plan in plans).most_common()
    return ", ".join(f"{count} of {width} x {height}" for (height, width), count in counted)


def _variant_notes(count: int, flip: bool, augmentation: Augmentation) -> list[str]:
    if not augmentation.is_random:
        unused = augmentation.variants > 1
        notes = ["variants has no effect: crop and colour are 0"] if unused else []
        return [*notes, *(["each image and its mirror image"] if flip else [])]
    changes = [f"cropped by up to {augmentation.crop:.0%}"] if augmentation.crop else []
    changes += [f"colors changed by up to {augmentation.color:.0%}"] if augmentation.color else []
    changes += ["every second one mirrored"] if flip else []
    return [f"{count} variants of each image: {', '.join(changes)}"]


def _describe_resize(plan: ImagePlan) -> str:
    """Return the sizes before and after, and what is lost between, for the unaugmented image."""
    (height, width), (rows, columns), box = plan.shape, plan.size, plan.views[0].box
    note = f"{width} x {height} -> {columns} x {rows}"
    scale, cropped = max(rows / box.height, columns / box.width), 1 - box.height * box.width / (height * width)
    if scale > MAX_ENLARGEMENT:
        note += f" (enlarged {scale:.1f} times: a larger image holds more detail to learn)"
    if cropped > MAX_CROPPED:
        note += f" (the crop cuts away {cropped:.0%}: crop it yourself if the subject is not in the center)"
    return note


def _describe_mask(plan: ImagePlan) -> str:
    """Return which share of the image, and so of its loss, the mask leaves."""
    return "" if plan.mask is None else f", of which the mask leaves {plan.mask.float().mean().item():.0%}"


def _mask_doubt(plan: ImagePlan) -> str | None:
    """Return a warning about a mask that is probably inverted, or None.

    A photograph shows its subject in the center. The MASK of the stock Load Image is 1 where the image is transparent,
    which is the background of one that is cut out.
    """
    if plan.mask is None:
        return None
    (height, width), mask = plan.mask.shape, plan.mask.float()
    share = mask.mean().item()
    center = mask[height // 3 : height - height // 3, width // 3 : width - width // 3].mean().item()
    if share >= MIN_MASK and center >= MIN_MASK:
        return None
    where = f"{center:.0%} of its center" if share >= MIN_MASK else f"{share:.1%} of it"
    return (
        f"mask {plan.index + 1} leaves {where}; white is learned. If it is inverted, as Load Image's MASK of a cut-out "
        "image is, put Invert Mask before Subject"
    )


def _duplicates(plans: Sequence[ImagePlan]) -> list[str]:
    """Return a line for each duplicate: it doubles the weight of its image, which is rarely intended.

    The same image in memory is a repeat that was asked for, as by kohya's folders, and no duplicate.
    """
    first: dict[tuple[tuple[int, int], bytes], int] = {}
    addresses: set[int] = set()
    notes = []
    for plan in plans:
        if plan.image.data_ptr() in addresses:
            continue
        addresses.add(plan.image.data_ptr())
        content = hashlib.sha256(plan.image.contiguous().cpu().numpy().tobytes()).digest()
        earlier = first.setdefault((plan.shape, content), plan.index)
        if earlier != plan.index:
            notes.append(f"image {plan.index + 1} is a duplicate of image {earlier + 1}, which therefore counts twice")
    return notes
