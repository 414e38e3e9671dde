"""Define identities: people and vases. They do not depend on the scene, and no caption names their attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..drawing.palette import CLOTHES, EYES, GLAZES, HAIR, METALS
from ..random_draws import uniforms
from .attributes import Attribute, Table

LOW_HAIR = frozenset({"bob", "long", "curly", "pigtails"})
"""Hair that extends below a hat, so that its shape remains visible."""


def shows_hair(person: Any) -> bool:
    """Return whether the shape of the hair is visible: a hat hides hair that is short or grows upwards."""
    return person.hat == "none" or person.hair in LOW_HAIR


def shows_hair_color(person: Any) -> bool:
    """Return whether more than the brows shows the color of the hair."""
    return person.hair in LOW_HAIR or person.beard == "full" or (person.hair != "bald" and person.hat == "none")


def shows_mouth(person: Any) -> bool:
    """Return whether no beard covers the corners of the mouth and the jaw."""
    return person.beard != "full"


def shows_brows(person: Any) -> bool:
    """Return whether no rim of the glasses lies over the brows."""
    return person.glasses != "winged"


FACE_TABLE = Table(
    (
        Attribute("skin", "tone"),
        Attribute("face_width", "shape"),
        Attribute("jaw", "shape", seen=shows_mouth),
        Attribute(
            "hair", "shape", ("bald", "crop", "parting", "bob", "long", "curly", "mohawk", "bun", "pigtails"),
            (0.7, 1, 1, 1, 1, 1, 0.8, 0.9, 0.9), shows_hair,
        ),
        Attribute("hair_color", "hue", tuple(HAIR), seen=shows_hair_color),
        Attribute("eye_size", "detail"),
        Attribute("eye_gap", "detail"),
        Attribute("eye_color", "hue", tuple(EYES)),
        Attribute("brow", "detail", seen=shows_brows),
        Attribute("brow_slant", "detail", seen=shows_brows),
        Attribute("nose", "detail"),
        Attribute("mouth", "detail", seen=shows_mouth),
        Attribute("cheeks", "detail", ("clear", "freckles", "rosy"), (2, 1, 1)),
        Attribute("beard", "shape", ("none", "mustache", "goatee", "full"), (4, 1, 1, 1)),
        Attribute("glasses", "detail", ("none", "round", "square", "winged"), (3.5, 1, 1, 1)),
        Attribute("glasses_color", "hue", tuple(METALS), seen=lambda person: person.glasses != "none"),
        Attribute("earrings", "detail", ("none", "hoops"), (3, 1)),
        Attribute("hat", "shape", ("none", "beanie", "top_hat", "cap", "sun_hat", "cone"), (5, 1, 1, 1, 1, 1)),
        Attribute("hat_color", "hue", tuple(CLOTHES), seen=lambda person: person.hat != "none"),
        Attribute("clothes", "shape", ("tee", "collar", "hoodie", "stripes", "turtleneck")),
        Attribute("clothes_color", "hue", tuple(CLOTHES)),
    )
)  # fmt: skip

VASE_TABLE = Table(
    (
        Attribute("form", "shape", ("amphora", "bottle", "bowl", "urn", "cylinder")),
        Attribute("width", "shape"),
        Attribute("height", "shape"),
        Attribute("pattern", "shape", ("plain", "bands", "dots", "zigzag", "checks")),
        Attribute("glaze", "hue", tuple(GLAZES)),
        Attribute("paint", "hue", tuple(GLAZES), seen=lambda vase: vase.pattern != "plain"),
        Attribute("handles", "shape", ("none", "one", "two")),
        Attribute("flowers", "shape", ("none", "tulips", "daisies", "leaves"), (1.5, 1, 1, 1)),
        Attribute("flower_color", "hue", tuple(CLOTHES), seen=lambda vase: vase.flowers in {"tulips", "daisies"}),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """Describe a person; FACE_TABLE has the values, and numbers range from 0 to 1."""

    skin: float = 0.3
    face_width: float = 0.5
    jaw: float = 0.5
    hair: str = "parting"
    hair_color: str = "brown"
    eye_size: float = 0.5
    eye_gap: float = 0.5
    eye_color: str = "blue"
    brow: float = 0.5
    brow_slant: float = 0.5
    nose: float = 0.5
    mouth: float = 0.5
    cheeks: str = "clear"
    beard: str = "none"
    glasses: str = "none"
    glasses_color: str = "black"
    earrings: str = "none"
    hat: str = "none"
    hat_color: str = "red"
    clothes: str = "tee"
    clothes_color: str = "teal"

    def __post_init__(self) -> None:
        FACE_TABLE.check(self)


@dataclass(frozen=True)
class Vase:
    """Describe a vase; VASE_TABLE has the values."""

    form: str = "amphora"
    width: float = 0.5
    height: float = 0.5
    pattern: str = "bands"
    glaze: str = "blue"
    paint: str = "cream"
    handles: str = "none"
    flowers: str = "none"
    flower_color: str = "red"

    def __post_init__(self) -> None:
        VASE_TABLE.check(self)
        if self.pattern != "plain" and self.glaze == self.paint:
            raise ValueError(f"glaze and paint are both {self.paint!r}: the {self.pattern} would not be seen")


Thing = Identity | Vase


def table_of(thing: Thing) -> Table:
    """Return the table that describes this kind of thing."""
    return FACE_TABLE if isinstance(thing, Identity) else VASE_TABLE


def sample_identity(generator: torch.Generator) -> Identity:
    """Return a random person."""
    return Identity(**FACE_TABLE.draw(uniforms(generator, len(FACE_TABLE))))


def sample_vase(generator: torch.Generator) -> Vase:
    """Return a random vase; a pattern always has another color than its ground."""
    values = VASE_TABLE.draw(uniforms(generator, len(VASE_TABLE)))
    if values["paint"] == values["glaze"]:
        colors = tuple(GLAZES)
        values["paint"] = colors[(colors.index(values["glaze"]) + 1) % len(colors)]
    return Vase(**values)
