"""Define the oracle's questions about an image, and their true answers for a drawn one."""

from __future__ import annotations

import numpy as np

from ..scene.attributes import Attribute, Table
from ..scene.captions import noun_of
from ..scene.identity import FACE_TABLE, Identity, Thing
from ..scene.scene import SCENE_TABLE, Scene
from ..scene.truth import identity_seen, identity_vector, scene_seen, scene_vector

THING = Attribute("thing", "shape", ("face", "vase"))
QUESTIONS = Table((THING, *FACE_TABLE, *SCENE_TABLE))
"""Class, identity of a face, and scene; there are no questions about the identity of a vase."""


def answers(thing: Thing, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the answers, [questions] float32, and which of them the image shows, [questions] bool."""
    face = isinstance(thing, Identity)
    values = identity_vector(thing) if face else np.zeros(len(FACE_TABLE), np.float32)
    shown = identity_seen(thing, scene) if face else np.zeros(len(FACE_TABLE), bool)
    true = np.concatenate([[THING.encode(noun_of(thing))], values, scene_vector(scene)])
    return true.astype(np.float32), np.concatenate([[True], shown, scene_seen(thing, scene)])
