"""A small world of drawn portraits, in which personalisation can be measured: test and demo material only.

An identity (person or vase) and a scene make an image: `render(person(3), Scene("snow", "sketch"))`. `caption` names
the scene and never the identity, `parse` reads it back; `truth` has what oracles learn, `stream` what a training sees.
Shapes are signed distances in numpy, not Pillow's: one pixel of soft edge without drawing larger, light and strands at
no extra pass, any size (64, 96, 128), and the same bytes wherever float32 follows IEEE 754 (canvas.py).

Drawing takes 1.5 to 2.5 ms (64 x 64, one core), so that the oracle and the encoder see fresh images only, drawn by a
process of their own; the base sees the latents of 100,000 again and again. What an oracle is asked must be in the
image: losses and scores are weighed with `identity_seen` and `scene_seen`.
"""

from .drawing.render import SIZE, render, render_batch
from .scene.captions import caption, parse, sample_caption
from .scene.identity import FACE_TABLE, VASE_TABLE, Identity, Vase, sample_identity, sample_vase
from .scene.people import is_held_out, person, seeds, vase
from .scene.scene import KEEPS, SCENE_TABLE, Scene, sample_scene
from .scene.truth import identity_seen, identity_vector, scene_seen, scene_vector


async def comfy_entrypoint():
    """With this folder among ComfyUI's custom nodes, the stock *Load Checkpoint* opens the world's model."""
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
