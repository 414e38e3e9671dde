"""A small world of drawn portraits, in which personalisation can be measured: test and demo material only."""

from .captions import caption, parse, sample_caption
from .identity import FACE_TABLE, VASE_TABLE, Identity, Vase, sample_identity, sample_vase
from .people import is_held_out, person, seeds, vase
from .render import SIZE, render, render_batch
from .scene import KEEPS, SCENE_TABLE, Scene, sample_scene
from .truth import identity_seen, identity_vector, scene_seen, scene_vector

__all__ = [
    "FACE_TABLE",
    "KEEPS",
    "SCENE_TABLE",
    "SIZE",
    "VASE_TABLE",
    "Identity",
    "Scene",
    "Vase",
    "caption",
    "identity_seen",
    "identity_vector",
    "is_held_out",
    "parse",
    "person",
    "render",
    "render_batch",
    "sample_caption",
    "sample_identity",
    "sample_scene",
    "sample_vase",
    "scene_seen",
    "scene_vector",
    "seeds",
    "vase",
]
