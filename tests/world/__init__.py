"""A small world of drawn portraits, in which personalisation can be measured: test and demo material only.

An identity (person or vase) and a scene make a picture: `render(person(3), Scene("snow", "sketch"))`. `caption` names
the scene and never the identity, `parse` reads it back; `truth` has what oracles learn, `stream` what a training sees.
Shapes are signed distances in numpy, not Pillow's: one pixel of soft edge without drawing larger, light and strands at
no extra pass, any size (64, 96, 128), and the same bytes wherever float32 follows IEEE 754 (canvas.py).

How a base model should use it, from what was measured (one busy core, 64 x 64, processor time):

- Drawing takes 1.5 ms, with sampling and caption 1.7 ms: 600 pictures a second, a seventh of what training at 75 to
  105 pictures a second takes. So draw on the fly, batch k of n from `stream.batch(k * n, n)`, in a process of its own
  where there is a second core: no picture comes twice, and a resumed run needs only its step. A cache pays for an
  autoencoder alone: latents of 20,000 examples at 8 x 8 x 8 are 20 MB in half precision.
- Condition on `sample_caption` as it comes: it already leaves out a part (a plain "a face" is any face anywhere), so
  that only the empty caption of classifier-free guidance has to be added, for one example in ten.
- `caption` leaves the usual unsaid (a calm look, a photo); for prompt fidelity compare `parse(caption)` with an
  oracle's reading, where `scene_seen` allows it.
- What an oracle is asked must be in the picture: weigh its losses and scores with `identity_seen` and `scene_seen`.
  On photos in one place, without hat, beard and glasses, 10,000 pictures and 40 seconds teach a small CNN brow, brow
  slant, jaw and face width with R2 .97, .99, .996, .997 on others; a linear read-out of 5,000 reaches .99 or more
  for skin, eyes, nose and mouth. Free scenes need more: 750 steps on 12,500 of them taught it next to nothing.
- For pairs (reference in one scene, target in another) take `stream.example(n, people=N)`, or `person(seed)` for
  `seeds(held_out=True)` when measuring.
"""

from .captions import caption, parse, sample_caption
from .identity import FACE_TABLE, VASE_TABLE, Identity, Vase, sample_identity, sample_vase
from .people import is_held_out, person, seeds, vase
from .render import SIZE, render, render_batch
from .scene import KEEPS, SCENE_TABLE, Scene, sample_scene
from .truth import identity_seen, identity_vector, scene_seen, scene_vector


async def comfy_entrypoint():
    """With this folder among ComfyUI's custom nodes, the stock *Load Checkpoint* opens the world's model."""
    from comfy_api.latest import ComfyExtension

    from .base.family import register

    class World(ComfyExtension):
        async def get_node_list(self):
            return []

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
