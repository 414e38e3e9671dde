"""Write captions that name the scene and never the identity, and parse them.

"a face in the snow, smiling, as a sketch" -> {"thing": "face", "background": "snow", "expression": "smiling", ...}
"""

from __future__ import annotations

import torch

from ..random_draws import uniforms
from .identity import Identity, Thing
from .scene import Scene

WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "framing": {"close": ("a close-up of", "a close view of"), "far": ("a distant view of", "a wide shot of")},
    "background": {
        "studio": ("in a studio", "against a grey backdrop"),
        "snow": ("in the snow", "in a snowy landscape"),
        "beach": ("on the beach", "at the seaside"),
        "forest": ("in the forest", "among trees"),
        "night": ("at night", "under the moon"),
        "brick": ("in front of a brick wall", "against bricks"),
        "mountains": ("in the mountains", "before mountains at sunset"),
        "city": ("in the city", "in front of houses"),
        "meadow": ("in a meadow", "on a green field"),
        "sea": ("under water", "in the deep sea"),
    },
    "place": {"left": ("on the left", "at the left side"), "right": ("on the right", "at the right side")},
    "expression": {
        "neutral": ("with a calm look", "looking calm"),
        "smiling": ("smiling", "with a smile"),
        "surprised": ("surprised", "looking surprised"),
        "sad": ("sad", "looking sad"),
        "winking": ("winking", "with a wink"),
    },
    "style": {
        "photo": ("as a photo", "photographed"),
        "sketch": ("as a sketch", "drawn in pencil"),
        "pixel": ("as pixel art", "in big pixels"),
        "inverted": ("as a negative", "in inverted colours"),
        "sepia": ("in sepia", "as an old photograph"),
        "comic": ("as a comic", "in comic style"),
    },
}
"""Wordings of each value, in the order in which a caption names them; values without one are never named."""
NOUNS = {"face": ("a face", "a portrait"), "vase": ("a vase", "a flower vase")}
DEFAULTS = frozenset({"neutral", "photo"})
"""Values that a plain caption omits, and a random caption omits half of the time."""
NAMED = 0.93
"""Probability that a random caption names a value that is not a default."""


def noun_of(thing: Thing) -> str:
    """Return `face` or `vase`."""
    return "face" if isinstance(thing, Identity) else "vase"


def named(scene: Scene, noun: str) -> dict[str, str]:
    """Return all values that a caption of this scene may name; a vase has no expression."""
    values = {name: getattr(scene, name) for name in WORDINGS if noun == "face" or name != "expression"}
    return {"thing": noun} | {name: value for name, value in values.items() if value in WORDINGS[name]}


def phrase(values: dict[str, str], choice: dict[str, int]) -> str:
    """Return the caption that names `values`, each in the wording with the index in `choice` (0 by default)."""

    def wording_of(name: str) -> str:
        wordings = NOUNS[values["thing"]] if name == "thing" else WORDINGS[name][values[name]]
        return wordings[choice.get(name, 0) % len(wordings)]

    front = [wording_of(name) for name in ("framing", "thing", "background") if name in values]
    return ", ".join(
        [" ".join(front), *(wording_of(name) for name in ("place", "expression", "style") if name in values)]
    )


def caption(thing: Thing, scene: Scene) -> str:
    """Return the plain caption, which names all values of the scene except DEFAULTS."""
    values = named(scene, noun_of(thing))
    return phrase({name: value for name, value in values.items() if value not in DEFAULTS}, {})


def sample_caption(thing: Thing, scene: Scene, generator: torch.Generator) -> str:
    """Return a random caption, which names most values of the scene in random wordings."""
    values = named(scene, noun_of(thing))
    draws, choices = (dict(zip(values, uniforms(generator, len(WORDINGS) + 1), strict=False)) for _ in range(2))
    chance = {name: 1.0 if name == "thing" else 0.5 if value in DEFAULTS else NAMED for name, value in values.items()}
    kept = {name: value for name, value in values.items() if draws[name] < chance[name]}
    return phrase(kept, {name: int(draw * 4) for name, draw in choices.items()})


def parse(text: str) -> dict[str, str]:
    """Return what a caption names, `thing` and attributes of the scene; raise ValueError for unknown wordings."""
    front, *rest = text.split(", ")
    found: dict[str, str] = {}
    while front:
        name, value, wording = next((p for p in PHRASES if (front + " ").startswith(p[2] + " ")), (None, "", ""))
        if name is None:
            raise ValueError(f"the caption {text!r} has {front!r}, which names no scene: see captions.WORDINGS")
        found[name], front = value, front[len(wording) + 1 :]
        if not front and rest:
            front = rest.pop(0)
    return found


PHRASES = sorted(
    [("thing", noun, wording) for noun, wordings in NOUNS.items() for wording in wordings]
    + [(name, value, w) for name, values in WORDINGS.items() for value, wordings in values.items() for w in wordings],
    key=lambda row: -len(row[2]),
)
"""(attribute, value, wording), longer wordings first."""
