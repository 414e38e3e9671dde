"""The base class of every family: one update of one weight matrix.

Families of low rank have factors ``(up, down)`` with ``dW = up @ down``:

| code   | LoRA paper | LiDB (HyperDreamBooth)  | PaRa     |
|--------|------------|-------------------------|----------|
| `up`   | B          | A_aux A_train           | -Q       |
| `down` | A          | B_train B_aux           | Q^T W    |
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..backbone.forward_patch import Forward
from .layer_context import LayerContext
from .low_rank import low_rank_branch
from .weight_update import WeightUpdate


class AdapterLayer(nn.Module):
    """The change of one layer's weight matrix ``W [out, in]``; the caller flattens a convolution's kernel.

    A leading ``...`` dimension of the parameters is a batch of subjects.
    """

    family: ClassVar[str]
    """Name of the family in files and reports."""
    is_additive: ClassVar[bool] = False
    """Whether its update is :class:`.AddLowRank`: the factors depend on no weight."""
    has_parameter_layout: ClassVar[bool] = False
    """Whether its parameters are so few that an adapter is treated as one vector, see :mod:`.parameter_layout`."""
    tensor_names: ClassVar[tuple[str, ...]]
    """Names of its tensors, in the order of :meth:`to_tensors`."""

    @classmethod
    def create(cls, shape: tuple[int, int], config: Any, generator: torch.Generator) -> "AdapterLayer":
        """Create a layer with the initial values of its family.

        Args:
            shape: ``(out, in)`` of the matrix.
            config: the family's settings, such as :class:`.LoRAConfig`.
            generator: source of the random values, on the CPU.

        Raises:
            ValueError: the matrix is too small for the settings.
        """
        raise NotImplementedError

    def initialize_from_weight(
        self, weight_of: Callable[[], Tensor], config: Any, generator: torch.Generator
    ) -> None:  # fmt: skip
        """Replace the initial values by ones that depend on the weight, for settings that ask for it.

        Args:
            weight_of: returns ``W [out, in]``; called only if the weight is needed.
            config: the family's settings.
            generator: source of the random values, on the CPU.
        """

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape ``(out, in)`` of the matrix that the layer changes."""
        raise NotImplementedError

    def weight_update(self) -> WeightUpdate:
        """Return the update of the weight, see :mod:`.weight_update`; gradients flow to the parameters."""
        raise NotImplementedError

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return ``dW [..., out, in]``; families that project the weight need ``weight``."""
        return self.weight_update().delta(weight)

    def adapted_forward(self, context: LayerContext) -> Forward:
        """Return a forward with the update in it.

        For additive families this is ``y = f(x) + up (down x)``, f being the forward of ``context``.
        """
        factors = CachedFactors(self)

        def adapted(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            up, down = factors(x.dtype)
            return low_rank_branch(context.layer, context.forward(x, *args, **kwargs), x, up, down)

        return adapted

    @classmethod
    def share_computation(cls, layers: Iterable["AdapterLayer"]) -> None:
        """Prepare ``layers``, which will act in one network, for work that is cheaper in one call for all of them."""

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the layer's values under the names of ``tensor_names``, detached."""
        raise NotImplementedError

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "AdapterLayer":
        """Return a layer of the same settings with ``tensors`` in place of :meth:`to_tensors`."""
        raise NotImplementedError

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], matrix_shape: tuple[int, int], constants: Mapping[str, Any]
    ) -> "AdapterLayer":
        """Return the layer of :meth:`to_tensors`, for families that have a parameter layout.

        Args:
            tensors: tensor name -> values.
            matrix_shape: ``(out, in)``.
            constants: result of :meth:`constants_of`.
        """
        raise NotImplementedError

    @classmethod
    def constants_of(cls, layers: Iterable["AdapterLayer"]) -> dict[str, Any]:
        """Return what an adapter's layers share besides their parameters, in JSON's types: LiDB's frozen bases."""
        return {}

    @classmethod
    def check_constants(cls, constants: Mapping[str, Any], layers: Iterable["AdapterLayer"]) -> None:
        """Check that ``constants`` describe the constants that ``layers`` have here.

        Raises:
            ValueError: they describe other ones; the message names both.
        """

    def settings(self) -> dict[str, float]:
        """Return the settings that may differ between layers, by name, in the order of reports."""
        return {}

    def describe(self) -> str:
        """Return the settings in a few words, such as ``rank 8, alpha 8``."""
        return ", ".join(f"{name} {format_setting(value)}" for name, value in self.settings().items())


class CachedFactors:
    """The factors ``(up, down)`` of an additive layer per dtype, computed once if the layer does not train.

    Args:
        layer: of a family with :attr:`AdapterLayer.is_additive`.
    """

    def __init__(self, layer: AdapterLayer):
        self._layer, self._trains = layer, any(parameter.requires_grad for parameter in layer.parameters())
        self._cache: dict[torch.dtype, tuple[Tensor, ...]] = {}

    def __call__(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return ``(up [..., out, r], down [..., r, in])`` in ``dtype``."""
        if self._trains:
            return self._compute(dtype)
        if dtype not in self._cache:
            with torch.inference_mode(False), torch.no_grad():
                self._cache[dtype] = self._compute(dtype)
        return self._cache[dtype]

    def _compute(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(factor.to(dtype) for factor in self._layer.weight_update().low_rank_factors())


def format_setting(value: float) -> str:
    """Format a setting for reports: integers with every digit (a seed), other values short."""
    return str(value) if isinstance(value, int) else f"{value:g}"
