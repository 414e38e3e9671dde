"""What an oracle is to read from an image: the attributes as numbers, and which of them the image shows.

The tables (FACE_TABLE, VASE_TABLE, SCENE_TABLE) give the names, kinds and values, in the order of the vectors.
"""

from __future__ import annotations

import numpy as np

from .attributes import CARRIERS
from .identity import Identity, Thing, table_of
from .scene import SCENE_TABLE, Scene


def identity_vector(thing: Thing) -> np.ndarray:
    """[attributes] float32: continuous values in [0, 1], categorical ones as their index."""
    return table_of(thing).vector(thing)


def identity_seen(thing: Thing, scene: Scene) -> np.ndarray:
    """[attributes] bool: what of the identity can be read in this scene (its style may lose colors or details)."""
    return table_of(thing).seen(thing, scene.keeps)


def scene_vector(scene: Scene) -> np.ndarray:
    """[attributes] float32 of the scene, as identity_vector."""
    return SCENE_TABLE.vector(scene)


def scene_seen(thing: Thing, scene: Scene) -> np.ndarray:
    """[attributes] bool: all of the scene can be read, but a vase has no expression, and big pixels keep none."""
    seen = SCENE_TABLE.seen(scene, frozenset(CARRIERS))
    seen[SCENE_TABLE.names().index("expression")] = isinstance(thing, Identity) and "detail" in scene.keeps
    return seen
