"""What personalisation is asked to do in the world: from these views of a person, these scenes; nobody trains on them.

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
"""How the images of a person show them: photographs in four places."""
CAPTIONS = (
    "a face in the snow, smiling",
    "a face at night, surprised",
    "a face in front of a brick wall, as a sketch",
    "a face under water, as a comic",
    "a face on the beach, as pixel art",
)
"""Places and moods that no reference shows."""


def references(shown: Identity, count: int = len(REFERENCES)) -> Tensor:
    """[count, 64, 64, 3] in [0, 1]: the images of a person to train on."""
    return torch.from_numpy(render_batch([shown] * count, REFERENCES[:count])).float() / 255


def personal(caption: str) -> str:
    """The prompt for the person in this caption's scene."""
    return caption.replace(CLASS_PROMPT, PROMPT)


def subjects(count: int, start: int = 0) -> list[Identity]:
    """People nobody trained on."""
    return [person(seed) for _, seed in zip(range(count), seeds(held_out=True, start=start), strict=False)]
