"""Define the oracle's targets: the attributes as numbers, and which of them an image shows.

The tables (FACE_TABLE, VASE_TABLE, SCENE_TABLE) give the names, kinds and values, in the order of the vectors.
"""

from __future__ import annotations

import numpy as np

from .attributes import CARRIERS
from .identity import Identity, Thing, table_of
from .scene import SCENE_TABLE, Scene


def identity_vector(thing: Thing) -> np.ndarray:
    """Return continuous values in [0, 1] and categorical ones as their index, [attributes] float32."""
    return table_of(thing).vector(thing)


def identity_seen(thing: Thing, scene: Scene) -> np.ndarray:
    """Return which attributes of identity the scene shows (its style may lose colors or details), [attributes] bool."""
    return table_of(thing).seen(thing, scene.keeps)


def scene_vector(scene: Scene) -> np.ndarray:
    """Return the scene's attributes as in identity_vector, [attributes] float32."""
    return SCENE_TABLE.vector(scene)


def scene_seen(thing: Thing, scene: Scene) -> np.ndarray:
    """Return which scene attributes are shown, [attributes] bool: all but expressions of vases and in pixel art."""
    seen = SCENE_TABLE.seen(scene, frozenset(CARRIERS))
    seen[SCENE_TABLE.names().index("expression")] = isinstance(thing, Identity) and "detail" in scene.keeps
    return seen
