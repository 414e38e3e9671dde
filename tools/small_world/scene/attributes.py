"""Describe things by tables of attributes: their names, their values, and the carriers that show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

CARRIERS = ("hue", "tone", "shape", "detail")
"""The visual property by which an attribute is read: a color, a lightness, a large outline, or a small one."""


def always(thing: Any) -> bool:
    """Return True: every thing of its kind shows the attribute."""
    return True


@dataclass(frozen=True)
class Attribute:
    """Describe one attribute: continuous in [0, 1] if it has no `values`, otherwise one of them.

    `weights` are relative probabilities of the values (equal if absent), `seen` tells whether a thing shows the
    attribute at all (the hat's color needs a hat), `carrier` (see CARRIERS) determines which styles keep it.
    """

    name: str
    carrier: str
    values: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    seen: Callable[[Any], bool] = always

    def __post_init__(self) -> None:
        if self.carrier not in CARRIERS:
            raise ValueError(f"{self.name}: carrier is {self.carrier!r}, expected one of {CARRIERS}")
        if self.weights and len(self.weights) != len(self.values):
            raise ValueError(
                f"{self.name}: {len(self.weights)} weights for {len(self.values)} values, give one for each"
            )

    @property
    def kind(self) -> str:
        """Return `continuous` or `categorical`."""
        return "categorical" if self.values else "continuous"

    def draw(self, uniform: float) -> float | str:
        """Return the value at this quantile in [0, 1) of the attribute's distribution."""
        if not self.values:
            return uniform
        weights = self.weights or (1.0,) * len(self.values)
        left = uniform * sum(weights)
        for value, weight in zip(self.values, weights, strict=True):
            left -= weight
            if left < 0:
                return value
        return self.values[-1]

    def encode(self, value: float | str) -> float:
        """Return the number that encodes `value`: itself, or its index."""
        return float(self.values.index(value)) if self.values else float(value)

    def check(self, value: float | str) -> None:
        """Raise ValueError unless the attribute can have this value."""
        if self.values and value not in self.values:
            raise ValueError(f"{self.name} is {value!r}, expected one of {self.values}")
        if not self.values and not 0 <= value <= 1:
            raise ValueError(f"{self.name} is {value!r}, expected a number from 0 to 1")


class Table(tuple[Attribute, ...]):
    """List the attributes of one kind of thing, in the order of its vector."""

    __slots__ = ()

    def names(self) -> tuple[str, ...]:
        """Return the attributes' names in the order of the vector."""
        return tuple(a.name for a in self)

    def draw(self, uniforms: Iterator[float]) -> dict[str, float | str]:
        """Draw one value for each attribute, each from one uniform number."""
        return {a.name: a.draw(next(uniforms)) for a in self}

    def check(self, thing: Any) -> None:
        """Raise ValueError if an attribute of `thing` has an invalid value."""
        for attribute in self:
            attribute.check(getattr(thing, attribute.name))

    def vector(self, thing: Any) -> np.ndarray:
        """Return continuous values as they are and categorical ones as their index, [attributes] float32."""
        return np.array([a.encode(getattr(thing, a.name)) for a in self], np.float32)

    def seen(self, thing: Any, carriers: frozenset[str]) -> np.ndarray:
        """Return whether an image that keeps these `carriers` shows each attribute of this thing, [attributes] bool."""
        return np.array([a.carrier in carriers and a.seen(thing) for a in self])
