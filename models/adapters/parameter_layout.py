"""The layout of a flat parameter vector: which values belong to which layer, and in which bases.

| symbol | meaning                                                                             |
|--------|-------------------------------------------------------------------------------------|
| theta  | all parameters of one adapter, ``[..., N]``; a leading dimension is one of subjects |
| N      | the number of parameters: 30,000 for a LiDB of SD1.5                                |

The order is that of the layers, and within a layer that of the family's ``tensor_names``. Adapter files, subject banks
and predicted weights keep theta together with its layout, without which theta has no meaning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .base import AdapterLayer
from .families import FAMILIES
from .stack import Adapter
from .targets import Target

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of one layer's tensors, in the order of the family's ``tensor_names``."""


@dataclass(frozen=True)
class ParameterLayout:
    """Maps an adapter to theta and back, for families with :attr:`.AdapterLayer.has_parameter_layout` (LiDB).

    Args:
        family: name in :data:`FAMILIES`.
        targets: layer name -> target, in theta's order.
        shapes: layer name -> the shapes of its tensors, for one subject.
        constants: what the layers share besides their parameters: LiDB's basis seed, and checksums of the bases.

    Raises:
        ValueError: targets and shapes differ in their names or the order of them.
    """

    family: str
    targets: Mapping[str, Target]
    shapes: Mapping[str, Shapes]
    constants: Mapping[str, Any]

    def __post_init__(self) -> None:
        if list(self.targets) != list(self.shapes):
            raise ValueError("a layout's targets and shapes name other layers, or in another order")

    @classmethod
    def of(cls, adapter: Adapter) -> "ParameterLayout":
        """Return the layout of one subject's adapter.

        Raises:
            ValueError: its family has no parameter layout.
        """
        family = family_with_layout(adapter.family)
        shapes = {
            name: tuple(tuple(tensor.shape) for tensor in layer.to_tensors().values())
            for name, layer in adapter.layers.items()
        }
        targets = {name: adapter.targets[name] for name in adapter.layers}
        return cls(adapter.family, targets, shapes, family.constants_of(adapter.layers.values()))

    @cached_property
    def parameter_count(self) -> int:
        """The number N of values in theta."""
        return sum(math.prod(shape) for shapes in self.shapes.values() for shape in shapes)

    def unflatten(self, theta: Tensor) -> dict[str, dict[str, Tensor]]:
        """Return layer name -> tensor name -> ``[..., *shape]``: views of ``theta [..., N]``, gradients pass.

        Raises:
            ValueError: theta has another number of parameters.
        """
        if theta.ndim < 1 or theta.shape[-1] != self.parameter_count:
            raise ValueError(
                f"holds packed values of shape {tuple(theta.shape)}, its layout is for {self.parameter_count}"
            )
        names = FAMILIES[self.family].tensor_names
        flat = [shape for shapes in self.shapes.values() for shape in shapes]
        pieces = iter(theta.split([math.prod(shape) for shape in flat], dim=-1))
        return {
            layer: {name: next(pieces).unflatten(-1, shape) for name, shape in zip(names, shapes, strict=True)}
            for layer, shapes in self.shapes.items()
        }

    def flatten(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """Return theta, the inverse of :meth:`unflatten`; gradients pass.

        A tensor without a dimension of subjects counts for every subject.
        """
        names = FAMILIES[self.family].tensor_names
        flat = [
            tensor.flatten(tensor.ndim - len(shape))
            for layer, shapes in self.shapes.items()
            for shape, tensor in zip(shapes, (tensors[layer][name] for name in names), strict=True)
        ]
        subjects = max((tensor.shape[:-1] for tensor in flat), key=len)
        return torch.cat([tensor.expand(*subjects, -1) for tensor in flat], dim=-1)

    def pack(self, adapter: Adapter) -> Tensor:
        """Return theta ``[N]``, or ``[subjects, N]`` of an adapter of several subjects: a copy without gradients.

        Raises:
            ValueError: the adapter has another layout; the message names both.
        """
        self._check_adapter(adapter)
        return self.flatten({name: layer.to_tensors() for name, layer in adapter.layers.items()})

    def unpack(self, theta: Tensor) -> Adapter:
        """Return a new adapter that holds ``theta [N]`` or ``[subjects, N]``, on its device.

        Its parameters are leaves of their own: :meth:`gradient` collects what a backward accumulates there.
        """
        tensors = self.unflatten(theta.detach())
        with torch.inference_mode(False):
            layers = {
                name: layer.with_tensors({key: value.clone() for key, value in tensors[name].items()})
                for name, layer in self._template.layers.items()
            }
        return Adapter(self.family, layers, self.targets)

    @torch.no_grad()
    def assign(self, theta: Tensor, adapter: Adapter) -> None:
        """Copy ``theta`` into the parameters of ``adapter``, which was unpacked from a theta of the same shape."""
        for name, tensors in self.unflatten(theta.detach()).items():
            parameters = dict(adapter.layers[name].named_parameters())
            for key, value in tensors.items():
                parameters[key].copy_(value if value.ndim == parameters[key].ndim else value[0])

    def gradient(self, adapter: Adapter) -> Tensor:
        """Return the gradients of the adapter's parameters as one tensor of theta's shape, zero where there is none.

        The gradient of a tensor that the subjects share is divided equally among them.
        ``theta.backward(layout.gradient(adapter))`` propagates them to whatever theta was computed from.
        """
        widest = max(adapter.parameters(), key=lambda parameter: parameter.ndim)

        def gradient_of(parameter: nn.Parameter) -> Tensor:
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            return found if found.ndim == widest.ndim else found / len(widest)

        parameters = {name: dict(layer.named_parameters()) for name, layer in adapter.layers.items()}
        return self.flatten({name: {key: gradient_of(p) for key, p in own.items()} for name, own in parameters.items()})

    def check_compatible(self, other: "ParameterLayout", ours: str, theirs: str) -> None:
        """Check that ``other`` gives theta the same meaning.

        Args:
            other: the layout to compare with.
            ours: what this layout belongs to, for the message.
            theirs: what ``other`` belongs to, for the message.

        Raises:
            ValueError: it does not; the message names both.
        """
        if found := self.first_difference(other):
            raise ValueError(
                f"{ours} and {theirs} are of different kinds: {found[0]} in {ours}, {found[1]} in {theirs}; connect "
                "two that were made with the same LiDB settings"
            )

    def first_difference(self, other: "ParameterLayout") -> tuple[str, str] | None:
        """Return the first difference as ``(this layout's value, the other's)``, or None if the two are the same."""
        pairs = [(self.describe(), other.describe())]
        for (name, shape), (their_name, their_shape) in zip(self._layers(), other._layers(), strict=False):
            pairs.append((f"{name} {shape}", f"{their_name} {their_shape}"))
        if different := next((pair for pair in pairs if pair[0] != pair[1]), None):
            return different
        try:
            FAMILIES[self.family].check_constants(other.constants, self._template.layers.values())
        except ValueError as error:
            return "bases that it was made with", f"parameters of which it {error}"
        return None

    def describe(self) -> str:
        """Return a line such as ``lidb of 30,000 parameters on 200 layers, basis seed 0``."""
        seed = "".join(
            f", {name.replace('_', ' ')} {value}" for name, value in self.constants.items() if name != "probes"
        )
        return f"{self.family} of {self.parameter_count:,} parameters on {len(self.targets)} layers{seed}"

    def check(self) -> None:
        """Check that adapters can be made here and have the meaning that the layout was written with.

        Raises:
            ValueError: shapes do not fit each other, or the bases here are others.
        """
        _ = self._template

    @cached_property
    def _template(self) -> Adapter:
        """An adapter of this layout on expanded zeros: shapes of an untrusted file take no memory."""
        family, layers = family_with_layout(self.family), {}
        for name, target in self.targets.items():
            shapes = zip(family.tensor_names, self.shapes[name], strict=True)
            tensors = {key: torch.zeros(()).expand(shape) for key, shape in shapes}
            try:
                layers[name] = family.from_tensors(tensors, target.matrix_shape, self.constants)
            except ValueError as error:
                raise ValueError(f"holds no valid adapter: that of {name} {error}") from error
        family.check_constants(self.constants, layers.values())
        return Adapter(self.family, layers, self.targets)

    def _layers(self) -> list[tuple[str, tuple[Any, ...]]]:
        return [(name, (target.shape, *self.shapes[name])) for name, target in self.targets.items()]

    def _check_adapter(self, adapter: Adapter) -> None:
        """Compare family, targets and settings, which do not depend on the number of subjects."""
        settings = {name: layer.settings() for name, layer in self._template.layers.items()}
        if (adapter.family, adapter.targets, adapter.settings()) != (self.family, self.targets, settings):
            raise ValueError(
                f"the adapter is {adapter.describe()}; expected {self._template.describe()}, of the same layers"
            )


def family_with_layout(name: Any) -> type[AdapterLayer]:
    """Return the family of that name.

    Raises:
        ValueError: there is none, or it has no parameter layout.
    """
    known = {family: layer_class for family, layer_class in FAMILIES.items() if layer_class.has_parameter_layout}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"holds {name!r:.40} in packed form; this pack knows {', '.join(known)}")
    return known[name]
