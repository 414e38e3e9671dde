"""Define named colors as (red, green, blue) in [0, 1], far enough apart to be distinguished at 64 x 64."""

from __future__ import annotations

Color = tuple[float, float, float]


def rgb(code: str) -> Color:
    """Return the color of six hexadecimal digits."""
    return tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))  # type: ignore[return-value]


def mixed(one: Color, other: Color, share: float) -> Color:
    """Return `one` with this share of `other` in it."""
    return tuple(a + (b - a) * share for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def scaled(color: Color, factor: float) -> Color:
    """Return the color made darker (factor < 1) or lighter."""
    return tuple(min(1.0, c * factor) for c in color)  # type: ignore[return-value]


SKIN = tuple(rgb(c) for c in ("fbdcc8", "f0bd98", "d29a6c", "a16a43", "7a4c2f", "583726"))
"""Skin tones from light to dark; tones between them are interpolated."""

HAIR = {
    "black": rgb("1d1a22"),
    "brown": rgb("5b3518"),
    "ginger": rgb("c9541b"),
    "blond": rgb("ecc85c"),
    "white": rgb("e6e6ea"),
    "pink": rgb("f0559f"),
    "purple": rgb("7b3fc4"),
    "blue": rgb("2a6fdb"),
    "green": rgb("35a84c"),
}
EYES = {
    "brown": rgb("6b3a12"),
    "green": rgb("2f9e3f"),
    "blue": rgb("2f7de0"),
    "violet": rgb("9a45d6"),
    "amber": rgb("e8920c"),
    "gray": rgb("8b98a3"),
}
METALS = {"black": rgb("15151a"), "red": rgb("d3202b"), "gold": rgb("e6b422"), "blue": rgb("1f5fe0")}
CLOTHES = {
    "red": rgb("cf2e36"),
    "orange": rgb("ee8a22"),
    "yellow": rgb("f2d43c"),
    "green": rgb("3e9b45"),
    "teal": rgb("1fa3a0"),
    "blue": rgb("2f5fc4"),
    "purple": rgb("7f45b0"),
    "pink": rgb("ee7fae"),
    "white": rgb("ececf0"),
    "charcoal": rgb("35353f"),
}
GLAZES = {
    "blue": rgb("2456b8"),
    "cream": rgb("f1e6c8"),
    "red": rgb("b8322a"),
    "green": rgb("2f8a5b"),
    "ochre": rgb("d99a2b"),
    "black": rgb("26242c"),
    "violet": rgb("8a4fb5"),
}
WHITE, INK = (1.0, 1.0, 1.0), rgb("1a1418")


def skin_tone(share: float) -> Color:
    """Return the tone at `share` in [0, 1] of the way from the lightest to the darkest skin."""
    position = share * (len(SKIN) - 1)
    at = min(int(position), len(SKIN) - 2)
    return mixed(SKIN[at], SKIN[at + 1], position - at)
