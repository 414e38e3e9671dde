"""The meaning of a row of numbers: which of them are which layer's, in whose bases.

| symbol | meaning                                                                       |
|--------|-------------------------------------------------------------------------------|
| theta  | all numbers of one link, ``[..., N]``; a leading dimension is one of subjects |
| N      | how many there are: 30,000 for a LiDB of SD1.5                                |

The order is that of the layers, and within a layer that of the family's ``tensor_names``. Files of adapters, banks of
subjects and predicted weights keep theta and a layout; without it theta is noise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import FAMILIES, AdapterLayer
from .stack import Adapter
from .targets import Target

Shapes = tuple[tuple[int, ...], ...]
"""Of one layer's tensors, in the order of the family's ``tensor_names``."""


@dataclass(frozen=True)
class ParameterLayout:
    """Packs a link into theta and back; for families that files keep packed (LiDB).

    Args:
        family: name in :data:`FAMILIES`.
        targets: layer name -> where its adapter sits, in theta's order.
        shapes: layer name -> the shapes of its adapter's tensors, for one subject.
        constants: what the layers share beside their parameters: LiDB's basis seed, and checksums of the bases.
    """

    family: str
    targets: Mapping[str, Target]
    shapes: Mapping[str, Shapes]
    constants: Mapping[str, Any]

    def __post_init__(self) -> None:
        if list(self.targets) != list(self.shapes):
            raise ValueError("a layout's targets and shapes name other layers, or in another order")

    @classmethod
    def of(cls, link: Adapter) -> "ParameterLayout":
        """The layout of one subject's link.

        Raises:
            ValueError: its family is not kept packed.
        """
        kind = family_with_layout(link.family)
        shapes = {
            name: tuple(tuple(tensor.shape) for tensor in adapter.to_tensors().values())
            for name, adapter in link.layers.items()
        }
        targets = {name: link.targets[name] for name in link.layers}
        return cls(link.family, targets, shapes, kind.constants_of(link.layers.values()))

    @cached_property
    def parameter_count(self) -> int:
        """N."""
        return sum(math.prod(shape) for shapes in self.shapes.values() for shape in shapes)

    def unflatten(self, theta: Tensor) -> dict[str, dict[str, Tensor]]:
        """Layer name -> tensor name -> its numbers ``[..., *shape]``: views of ``theta [..., N]``, gradients pass.

        Raises:
            ValueError: theta has another number of numbers.
        """
        if theta.ndim < 1 or theta.shape[-1] != self.parameter_count:
            raise ValueError(
                f"holds packed numbers of shape {tuple(theta.shape)}, its layout is for {self.parameter_count}"
            )
        names = FAMILIES[self.family].tensor_names
        flat = [shape for shapes in self.shapes.values() for shape in shapes]
        pieces = iter(theta.split([math.prod(shape) for shape in flat], dim=-1))
        return {
            layer: {name: next(pieces).unflatten(-1, shape) for name, shape in zip(names, shapes, strict=True)}
            for layer, shapes in self.shapes.items()
        }

    def flatten(self, parts: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """Theta from :meth:`unflatten`; gradients pass. What has no dimension of subjects is the same for all of them."""
        names = FAMILIES[self.family].tensor_names
        flat = [
            tensor.flatten(tensor.ndim - len(shape))
            for layer, shapes in self.shapes.items()
            for shape, tensor in zip(shapes, (parts[layer][name] for name in names), strict=True)
        ]
        subjects = max((tensor.shape[:-1] for tensor in flat), key=len)
        return torch.cat([tensor.expand(*subjects, -1) for tensor in flat], dim=-1)

    def pack(self, link: Adapter) -> Tensor:
        """Theta ``[N]`` of a link, ``[subjects, N]`` of one that holds several; a copy, without gradients.

        Raises:
            ValueError: the link is of another layout; both sides are named.
        """
        self._check_kind(link)
        return self.flatten({name: adapter.to_tensors() for name, adapter in link.layers.items()})

    def unpack(self, theta: Tensor) -> Adapter:
        """New adapters that hold ``theta [N]`` or ``[subjects, N]``, on its device, for attaching and training.

        Their numbers are parameters of their own: what a backward leaves there is fetched with :meth:`gradient`.
        """
        parts = self.unflatten(theta.detach())
        with torch.inference_mode(False):
            adapters = {
                name: adapter.with_tensors({key: value.clone() for key, value in parts[name].items()})
                for name, adapter in self._template.layers.items()
            }
        return Adapter(self.family, adapters, self.targets)

    @torch.no_grad()
    def assign(self, theta: Tensor, link: Adapter) -> None:
        """Give the adapters of ``link``, made of numbers of the same shape, the numbers ``theta``."""
        for name, tensors in self.unflatten(theta.detach()).items():
            parameters = dict(link.layers[name].named_parameters())
            for key, value in tensors.items():
                parameters[key].copy_(value if value.ndim == parameters[key].ndim else value[0])

    def gradient(self, link: Adapter) -> Tensor:
        """The gradients of the adapters' numbers as one, like theta; zero where none arrived. Of what subjects share,
        each has its part.

        ``theta.backward(layout.gradient(link))`` takes them on to whatever theta was made of.
        """
        widest = max(link.parameters(), key=lambda parameter: parameter.ndim)

        def of(parameter: nn.Parameter) -> Tensor:
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            return found if found.ndim == widest.ndim else found / len(widest)

        parameters = {name: dict(adapter.named_parameters()) for name, adapter in link.layers.items()}
        return self.flatten({name: {key: of(p) for key, p in own.items()} for name, own in parameters.items()})

    def check_compatible(self, other: "ParameterLayout", ours: str, theirs: str) -> None:
        """``other`` gives numbers the same meaning.

        Args:
            ours, theirs: what the two layouts belong to, for the message.

        Raises:
            ValueError: it does not; both sides are named.
        """
        if found := self.first_difference(other):
            raise ValueError(
                f"{ours} and {theirs} are of different kinds: {found[0]} in {ours}, {found[1]} in {theirs}; connect "
                "two that were made with the same LiDB settings"
            )

    def first_difference(self, other: "ParameterLayout") -> tuple[str, str] | None:
        """The first thing that differs, as each side has it; None if nothing does."""
        pairs = [(self.describe(), other.describe())]
        for (name, shape), (their_name, their_shape) in zip(self._layers(), other._layers(), strict=False):
            pairs.append((f"{name} {shape}", f"{their_name} {their_shape}"))
        if different := next((pair for pair in pairs if pair[0] != pair[1]), None):
            return different
        try:
            FAMILIES[self.family].check_constants(other.constants, self._template.layers.values())
        except ValueError as error:
            return "bases that it was made with", f"numbers that it {error}"
        return None

    def describe(self) -> str:
        """``lidb of 30,000 numbers on 200 layers, basis seed 0``."""
        seed = "".join(
            f", {name.replace('_', ' ')} {value}" for name, value in self.constants.items() if name != "probes"
        )
        return f"{self.family} of {self.parameter_count:,} numbers on {len(self.targets)} layers{seed}"

    def check(self) -> None:
        """Links can be made here, and mean what the layout's writer meant.

        Raises:
            ValueError: shapes do not fit each other, or the bases here are others.
        """
        _ = self._template

    @cached_property
    def _template(self) -> Adapter:
        """A link of this layout, without numbers of its own: shapes of strangers take no memory."""
        kind, adapters = family_with_layout(self.family), {}
        for name, target in self.targets.items():
            shapes = zip(kind.tensor_names, self.shapes[name], strict=True)
            tensors = {key: torch.zeros(()).expand(shape) for key, shape in shapes}
            try:
                adapters[name] = kind.from_tensors(tensors, target.matrix_shape, self.constants)
            except ValueError as error:
                raise ValueError(f"is of no use: the adapter of {name} {error}") from error
        kind.check_constants(self.constants, adapters.values())
        return Adapter(self.family, adapters, self.targets)

    def _layers(self) -> list[tuple[str, tuple[Any, ...]]]:
        return [(name, (target.shape, *self.shapes[name])) for name, target in self.targets.items()]

    def _check_kind(self, link: Adapter) -> None:
        """Families keep a link's settings in its tensors' shapes and its facts, whatever the number of subjects."""
        settings = {name: adapter.settings() for name, adapter in self._template.layers.items()}
        if (link.family, link.targets, link.settings()) != (self.family, self.targets, settings):
            raise ValueError(
                f"the adapter is {link.describe()}; expected {self._template.describe()}, of the same layers"
            )


def family_with_layout(name: Any) -> type[AdapterLayer]:
    """Return the family of that name.

    Raises:
        ValueError: it has no parameter layout.
    """
    known = {family: kind for family, kind in FAMILIES.items() if kind.has_parameter_layout}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"holds {name!r:.40} in packed form; this pack knows {', '.join(known)}")
    return known[name]
