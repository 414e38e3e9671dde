"""What every family is: one step on a weight, and for those of low rank ``factors(W) -> (up, down)``,
``dW = up @ down``.

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
    """The change of one weight matrix ``W [out, in]``; a convolution's kernel is flattened by the caller.

    A leading ``...`` dimension of the parameters is a batch of subjects.
    """

    family: ClassVar[str]
    """Name of the family in files and reports."""
    starts_as_identity: ClassVar[bool]
    """Whether a new adapter changes nothing."""
    is_additive: ClassVar[bool] = False
    """Whether its step is a :class:`~..steps.Sum`: what it adds has factors that depend on no weight."""
    has_parameter_layout: ClassVar[bool] = False
    """Whether its parameters are so few that an adapter is treated as one vector, see :mod:`.parameter_layout`."""
    tensor_names: ClassVar[tuple[str, ...]]
    """Names of its tensors, in their order."""

    @classmethod
    def create(cls, shape: tuple[int, int], config: Any, generator: torch.Generator) -> "AdapterLayer":
        """A new adapter for a matrix of ``shape = (out, in)``, drawn from ``generator`` (on the CPU)."""
        raise NotImplementedError

    def initialize_from_weight(self, weight_of: Callable[[], Tensor], config: Any, generator: torch.Generator) -> None:
        """Move to a start that depends on the weight ``W [out, in]``, for settings that ask for one."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape ``(out, in)`` of the matrix it changes."""
        raise NotImplementedError

    def weight_update(self) -> WeightUpdate:
        """What it does to a weight, see :mod:`..steps`; gradients flow to the parameters."""
        raise NotImplementedError

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change of the weight, ``[..., out, in]``; families that project ``W`` need it."""
        return self.weight_update().delta(weight)

    def adapted_forward(self, site: LayerContext) -> Forward:
        """The site's forward f with the change: ``y = f(x) + up (down x)`` for families that add a low rank."""
        factors = CachedFactors(self)

        def adapted(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            up, down = factors(x.dtype)
            return low_rank_branch(site.layer, site.forward(x, *args, **kwargs), x, up, down)

        return adapted

    @classmethod
    def share_computation(cls, adapters: Iterable["AdapterLayer"]) -> None:
        """Adapters that will work side by side; for families that can do part of the work for all at once."""

    def to_tensors(self) -> dict[str, Tensor]:
        """The numbers it is made of, by the names in ``tensor_names``."""
        raise NotImplementedError

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "AdapterLayer":
        """The same adapter with other ``to_tensors``."""
        raise NotImplementedError

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], matrix: tuple[int, int], constants: Mapping[str, Any]
    ) -> "AdapterLayer":
        """Return the layer of ``to_tensors``, for families that have a parameter layout.

        Args:
            tensors: tensor name -> values.
            matrix: ``(out, in)``.
            constants: what :meth:`constants_of` gave.
        """
        raise NotImplementedError

    @classmethod
    def constants_of(cls, layers: Iterable["AdapterLayer"]) -> dict[str, Any]:
        """Return what an adapter's layers share beside their parameters, in JSON's types: LiDB's frozen bases."""
        return {}

    @classmethod
    def check_constants(cls, constants: Mapping[str, Any], layers: Iterable["AdapterLayer"]) -> None:
        """Check that ``constants`` describe the very constants that ``layers`` have here.

        Raises:
            ValueError: they describe others; both sides are named.
        """

    def settings(self) -> dict[str, float]:
        """The settings that may differ from layer to layer, by name, in the order of reports."""
        return {}

    def describe(self) -> str:
        """The settings in a few words, for reports: ``rank 8, alpha 8``."""
        return ", ".join(f"{name} {format_setting(value)}" for name, value in self.settings().items())


class CachedFactors:
    """``(up, down)`` of an adapter in a dtype; those of one that does not train are worked out once."""

    def __init__(self, adapter: AdapterLayer):
        self.adapter, self.trains = adapter, any(parameter.requires_grad for parameter in adapter.parameters())
        self.kept: dict[torch.dtype, tuple[Tensor, ...]] = {}

    def __call__(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        if self.trains:
            return self._now(dtype)
        if dtype not in self.kept:
            with torch.inference_mode(False), torch.no_grad():
                self.kept[dtype] = self._now(dtype)
        return self.kept[dtype]

    def _now(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(factor.to(dtype) for factor in self.adapter.weight_update().low_rank_factors())


def format_setting(value: float) -> str:
    """A setting for reports: whole numbers with every digit (a seed), others short."""
    return str(value) if isinstance(value, int) else f"{value:g}"
