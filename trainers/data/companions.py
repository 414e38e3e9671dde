"""Files that belong to an image of the same folder: its caption, its mask, and what other tools leave beside it.

Trainers and annotation tools name a mask or a control image after its photograph, with a suffix: ``a-masklabel.png``
(OneTrainer), ``a_mask.png``, ``a.mask.png``, ``a_depth.png``. Taken for a photograph, it would be trained on.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MASK = "mask"
ROLES = {
    "mask": MASK, "masks": MASK, "masklabel": MASK, "alpha": MASK, "matte": MASK, "segmentation": MASK,
    "depth": "depth map", "normal": "normal map", "canny": "edge map", "edges": "edge map", "hed": "edge map",
    "lineart": "line drawing", "scribble": "line drawing", "softedge": "edge map", "pose": "pose",
    "openpose": "pose", "seg": "segmentation", "control": "control image", "cond": "control image",
    "condlabel": "control image", "conditioning": "control image", "thumb": "thumbnail", "thumbnail": "thumbnail",
    "preview": "preview",
}  # fmt: skip
"""Suffix of a name -> what such a file is to the image that has the name without it."""
_SUFFIXED = re.compile(rf"(?P<stem>.+?)[ ._-](?P<role>{'|'.join(ROLES)})", re.IGNORECASE)
_PREFIXED = re.compile(r"(?P<role>thumb|thumbnail|mask|depth)[ ._-](?P<stem>.+)", re.IGNORECASE)
TEXT_SUFFIXES = (".txt", ".caption")


@dataclass
class Companions:
    """What lies beside the images of a folder.

    Args:
        masks: image -> its mask.
        others: file -> the image it belongs to and what it is.
    """

    masks: dict[Path, Path] = field(default_factory=dict)
    others: dict[Path, tuple[Path, str]] = field(default_factory=dict)


def find_companions(images: Iterable[Path]) -> Companions:
    """Return which of the image files of a folder belong to another one, by its name.

    A file is a companion only if the image it is named after is there: a photograph ``mask.png`` alone is one. Of
    several masks of one image ``name.mask.png``, this pack's own, is taken.
    """
    images, found = list(images), Companions()
    by_stem = {path.stem.casefold(): path for path in reversed(images)}
    for path in images:
        named = _named_after(path, by_stem)
        if named is None:
            continue
        image, role = named
        if role == MASK and (image not in found.masks or path.stem.casefold() == f"{image.stem}.mask".casefold()):
            if image in found.masks:
                found.others[found.masks[image]] = (image, "another mask")
            found.masks[image] = path
        else:
            found.others[path] = (image, "another mask" if role == MASK else role)
    return found


def _named_after(path: Path, by_stem: Mapping[str, Path]) -> tuple[Path, str] | None:
    """Return the image that a file is named after and the file's role, if there is such an image."""
    for pattern in (_SUFFIXED, _PREFIXED):
        match = pattern.fullmatch(path.stem)
        image = by_stem.get(match["stem"].casefold()) if match else None
        if image is not None and image != path:
            return image, ROLES[match["role"].lower()]
    return None


def caption_path(image: Path) -> Path:
    """Return the path of an image's caption: ``name.txt``, or ``name.caption`` where only that is there."""
    candidates = [image.with_suffix(suffix) for suffix in TEXT_SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])
