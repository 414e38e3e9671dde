"""Define the personalization task: reference views of a person, and captions of new scenes, held out of training.

The demo, `dev.py bench quality` and the tests share it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..drawing.render import render_batch
from .identity import Identity
from .people import person, seeds
from .scene import Scene

CLASS_PROMPT = "a face"
PROMPT = "a sks face"
REFERENCES = (
    Scene("studio", variant=1),
    Scene("meadow", expression="sad", shift_x=0.2, variant=2),
    Scene("forest", framing="close", shift_y=0.7, variant=3),
    Scene("mountains", expression="winking", shift_x=0.8, variant=4),
)
"""Scenes of a person's reference images: photos with four backgrounds."""
CAPTIONS = (
    "a face in the snow, smiling",
    "a face at night, surprised",
    "a face in front of a brick wall, as a sketch",
    "a face under water, as a comic",
    "a face on the beach, as pixel art",
)
"""Captions with backgrounds and expressions that no reference image shows."""


def references(shown: Identity, count: int = len(REFERENCES)) -> Tensor:
    """Return the reference images of a person, [count, 64, 64, 3] in [0, 1]."""
    return torch.from_numpy(render_batch([shown] * count, REFERENCES[:count])).float() / 255


def personal(caption: str) -> str:
    """Return the prompt for the person in this caption's scene."""
    return caption.replace(CLASS_PROMPT, PROMPT)


def subjects(count: int, start: int = 0) -> list[Identity]:
    """Return held-out people."""
    return [person(seed) for _, seed in zip(range(count), seeds(held_out=True, start=start), strict=False)]
