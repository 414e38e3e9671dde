"""What the oracle is asked of an image, and the true answers for one that was drawn."""

from __future__ import annotations

import numpy as np

from ..scene.attributes import Attribute, Table
from ..scene.captions import noun_of
from ..scene.identity import FACE_TABLE, Identity, Thing
from ..scene.scene import SCENE_TABLE, Scene
from ..scene.truth import identity_seen, identity_vector, scene_seen, scene_vector

THING = Attribute("thing", "shape", ("face", "vase"))
QUESTIONS = Table((THING, *FACE_TABLE, *SCENE_TABLE))
"""Whether it is a face, whose, and in what scene; of a vase nothing of its own is asked."""


def answers(thing: Thing, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """([questions] float32, [questions] bool): the answers, and which of them the image shows."""
    face = isinstance(thing, Identity)
    values = identity_vector(thing) if face else np.zeros(len(FACE_TABLE), np.float32)
    shown = identity_seen(thing, scene) if face else np.zeros(len(FACE_TABLE), bool)
    true = np.concatenate([[THING.encode(noun_of(thing))], values, scene_vector(scene)])
    return true.astype(np.float32), np.concatenate([[True], shown, scene_seen(thing, scene)])
