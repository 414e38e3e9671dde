"""One table describes a thing: what its attributes are called, what values they take, what carries them to the eye."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

CARRIERS = ("hue", "tone", "shape", "detail")
"""What an attribute is read from: a color, a lightness, an outline of many pixels, or one of few."""


def always(thing: Any) -> bool:
    """The attribute is to be seen in every thing of its kind."""
    return True


@dataclass(frozen=True)
class Attribute:
    """One attribute: continuous in [0, 1] when it has no `values`, otherwise one of them.

    `weights` are the chances of the values (equal if absent), `seen` tells whether a thing shows the attribute at all
    (a hat's color where there is a hat), `carrier` (see CARRIERS) which styles keep it.
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
        """`continuous` or `categorical`."""
        return "categorical" if self.values else "continuous"

    def draw(self, uniform: float) -> float | str:
        """The value at this quantile in [0, 1) of the attribute's distribution."""
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
        """The number that stands for `value`: itself, or its index."""
        return float(self.values.index(value)) if self.values else float(value)

    def check(self, value: float | str) -> None:
        """ValueError unless the attribute can have this value."""
        if self.values and value not in self.values:
            raise ValueError(f"{self.name} is {value!r}, expected one of {self.values}")
        if not self.values and not 0 <= value <= 1:
            raise ValueError(f"{self.name} is {value!r}, expected a number from 0 to 1")


class Table(tuple[Attribute, ...]):
    """The attributes of one kind of thing, in the order of its vector."""

    __slots__ = ()

    def names(self) -> tuple[str, ...]:
        """The attributes' names, as in the vector."""
        return tuple(a.name for a in self)

    def draw(self, uniforms: Iterator[float]) -> dict[str, float | str]:
        """One value for each attribute, each from one uniform number."""
        return {a.name: a.draw(next(uniforms)) for a in self}

    def check(self, thing: Any) -> None:
        """ValueError if an attribute of `thing` has a value it cannot have."""
        for attribute in self:
            attribute.check(getattr(thing, attribute.name))

    def vector(self, thing: Any) -> np.ndarray:
        """[attributes] float32: a continuous value as it is, a categorical one as its index."""
        return np.array([a.encode(getattr(thing, a.name)) for a in self], np.float32)

    def seen(self, thing: Any, carriers: frozenset[str]) -> np.ndarray:
        """[attributes] bool: whether an image that keeps these `carriers` shows the attribute of this thing."""
        return np.array([a.carrier in carriers and a.seen(thing) for a in self])
