"""What is done to each picture before training, and what the report says of it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .augmentation import Augmentation, View

MUCH_ENLARGED = 1.25
MUCH_CUT = 0.2


@dataclass(frozen=True)
class ImagePlan:
    """What is to be made of one picture.

    Args:
        index: its number, from 0.
        image: ``[H, W, C]``.
        prompt: its text.
        mask: ``[H, W]``, or None if everything counts.
        size: (height, width) it is brought to.
        views: the versions to encode.
    """

    index: int
    image: Tensor
    prompt: str
    mask: Tensor | None
    size: tuple[int, int]
    views: Sequence[View]

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]


def image_notes(jobs: Sequence[ImagePlan], flip: bool, augmentation: Augmentation) -> list[str]:
    """Sizes, masks and versions of all, then a line for each picture, then what is there twice."""
    notes = [f"sizes: {_buckets(jobs)}"] if len(jobs) > 1 else []
    masked = sum(job.mask is not None for job in jobs)
    notes += [f"masks: {masked} of {len(jobs)} images"] if masked else []
    notes += _versions(len(jobs[0].views), flip, augmentation)
    notes += [f"image {job.index + 1}: {_framing(job)}" for job in jobs]
    return notes + _duplicates(jobs)


def class_notes(jobs: Sequence[ImagePlan]) -> list[str]:
    """A line for each kind of class image."""
    return [f"{count} class images: {note}" for note, count in Counter(map(_framing, jobs)).items()]


def _buckets(jobs: Sequence[ImagePlan]) -> str:
    counted = Counter(job.size for job in jobs).most_common()
    return ", ".join(f"{count} of {width} x {height}" for (height, width), count in counted)


def _versions(count: int, flip: bool, augmentation: Augmentation) -> list[str]:
    if not augmentation.varies:
        alone = augmentation.variants > 1
        idle = "variants has no effect: crop and colour are 0" if alone else ""
        return [*([idle] if idle else []), *(["each image and its mirror image"] if flip else [])]
    how = [f"cropped by up to {augmentation.crop:.0%}"] if augmentation.crop else []
    how += [f"colours changed by up to {augmentation.color:.0%}"] if augmentation.color else []
    how += ["every second one mirrored"] if flip else []
    return [f"{count} versions of each image: {', '.join(how)}"]


def _framing(job: ImagePlan) -> str:
    """Sizes before and after, and what was lost on the way, in the picture as it is."""
    (height, width), (rows, columns), box = job.shape, job.size, job.views[0].box
    note = f"{width} x {height} -> {columns} x {rows}"
    grown, cut = max(rows / box.height, columns / box.width), 1 - box.height * box.width / (height * width)
    if grown > MUCH_ENLARGED:
        note += f" (enlarged {grown:.1f} times: a larger picture would teach more)"
    if cut > MUCH_CUT:
        note += f" (the crop cuts away {cut:.0%}: crop it yourself if the subject is not in the middle)"
    return note


def _duplicates(jobs: Sequence[ImagePlan]) -> list[str]:
    """Pictures that are there more than once count for more, which is rarely meant."""
    first: dict[tuple[tuple[int, int], bytes], int] = {}
    notes = []
    for job in jobs:
        content = hashlib.sha256(job.image.contiguous().cpu().numpy().tobytes()).digest()
        earlier = first.setdefault((job.shape, content), job.index)
        if earlier != job.index:
            notes.append(f"image {job.index + 1} is the same picture as image {earlier + 1}, which so counts twice")
    return notes
