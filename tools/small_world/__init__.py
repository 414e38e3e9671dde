"""Provide a small world of drawn portraits in which personalization can be measured: test and demo material only.

An identity (person or vase) and a scene make an image: `render(person(3), Scene("snow", "sketch"))`. `caption` names
the scene and never the identity, and `parse` is its inverse; `truth` holds the oracle's targets, `stream` the training
examples. Shapes are signed distances in numpy instead of Pillow's: one pixel of soft edge without supersampling, light
and strands without an extra pass, any size (64, 96, 128), and the same bytes wherever float32 follows IEEE 754.

Drawing takes 1.5 to 2.5 ms (64 x 64, one core), so the oracle and the encoder train on new images only, drawn by a
separate process; the base trains on the latents of 100,000 repeatedly. The oracle is evaluated only on attributes that
the image shows: losses and scores are masked by `identity_seen` and `scene_seen`.
"""

from .drawing.render import SIZE, render, render_batch
from .scene.captions import caption, parse, sample_caption
from .scene.identity import FACE_TABLE, VASE_TABLE, Identity, Vase, sample_identity, sample_vase
from .scene.people import is_held_out, person, seeds, vase
from .scene.scene import KEEPS, SCENE_TABLE, Scene, sample_scene
from .scene.truth import identity_seen, identity_vector, scene_seen, scene_vector


async def comfy_entrypoint():
    """Register the world's model family, so that *Load Checkpoint* loads its checkpoint, and return its node."""
    from comfy_api.latest import ComfyExtension

    from .base.family import register
    from .vision.node import SmallWorldVision

    class World(ComfyExtension):
        async def get_node_list(self):
            return [SmallWorldVision]

    register()
    return World()


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
    "comfy_entrypoint",
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
