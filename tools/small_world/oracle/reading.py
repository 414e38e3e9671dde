"""Compare the oracle's readings with the ground truth, or with readings of other images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..scene.identity import FACE_TABLE, Identity
from ..scene.scene import Scene
from ..scene.truth import identity_seen
from .network import Oracle, parts
from .questions import QUESTIONS

Reading = Mapping[str, Tensor]
"""Attribute -> [images, values] probabilities of each value, or [images, 1] in [0, 1] if continuous."""
AT_ONCE = 100


@torch.inference_mode()
def read(oracle: Oracle, images: Tensor) -> Reading:
    """Return the reading of images [images, 64, 64, 3] in [0, 1], ComfyUI's format."""
    outputs = torch.cat([oracle(part.movedim(-1, 1).float()) for part in images.split(AT_ONCE)])
    return {
        a.name: part.softmax(1) if a.values else part.clamp(0, 1)
        for a, part in zip(QUESTIONS, parts(QUESTIONS, outputs).values(), strict=True)
    }


def person_of(reading: Reading) -> Identity:
    """Return the person that the images show, by the mean reading's most probable values."""
    chosen = {}
    for a in FACE_TABLE:
        mean = reading[a.name].mean(0)
        chosen[a.name] = a.values[int(mean.argmax())] if a.values else float(mean[0])
    return Identity(**chosen)


def agreement(first: Reading, second: Reading, scene: Scene, person: Identity | None = None) -> Tensor:
    """Return the mean agreement over the attributes that `scene` shows of `person` (of every person if None), [images].

    The agreement of a categorical attribute is the probability of equal values, ``sum p q``, that of a continuous one
    ``max(0, 1 - 2 |x - y|)``. The readings' images are broadcast against each other.
    """
    if person is None:
        shown = [a.carrier in scene.keeps and a.seen.__name__ == "always" for a in FACE_TABLE]
    else:
        shown = identity_seen(person, scene)
    kept = [a for a, is_shown in zip(FACE_TABLE, shown, strict=True) if is_shown]
    return torch.stack([_agreement(first[a.name], second[a.name], bool(a.values)) for a in kept]).mean(0)


def _agreement(p: Tensor, q: Tensor, categorical: bool) -> Tensor:
    if categorical:
        return (p * q).sum(-1)
    return (1 - 2 * (p - q).abs()).clamp(min=0)[..., 0]
