"""What every low-rank family is: one function, ``factors(W) -> (up, down)`` with ``dW = up @ down``.

| code   | LoRA paper | LiDB (HyperDreamBooth)  | PaRa     |
|--------|------------|-------------------------|----------|
| `up`   | B          | A_aux A_train           | -Q       |
| `down` | A          | B_train B_aux           | Q^T W    |
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..beside import beside
from ..forward import Forward
from ..frozen import Borrow


class Adapter(nn.Module):
    """The change of one weight matrix ``W [out, in]``; a convolution's kernel is flattened by the caller.

    A leading ``...`` dimension of the parameters is a batch of subjects.
    """

    family: ClassVar[str]
    """Name of the family in files and reports."""
    starts_as_identity: ClassVar[bool]
    """Whether a new adapter changes nothing."""
    low_rank: ClassVar[bool] = True
    """Whether the change has factors, so that a plain LoRA can hold it."""
    tensor_names: ClassVar[tuple[str, ...]]
    """Names of the adapter's tensors in a file, after the target's name and a dot."""

    @classmethod
    def create(cls, shape: tuple[int, int], config: Any, generator: torch.Generator) -> "Adapter":
        """A new adapter for a matrix of ``shape = (out, in)``, drawn from ``generator`` (on the CPU)."""
        raise NotImplementedError

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape ``(out, in)`` of the matrix it changes."""
        raise NotImplementedError

    def factors(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``up [..., out, r]`` and ``down [..., r, in]``; families that project ``W`` need ``weight``."""
        raise NotImplementedError

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change of the weight, ``up @ down``, ``[..., out, in]``."""
        up, down = self.factors(weight)
        return up @ down

    def on(self, layer: nn.Module, forward: Forward, borrow: Borrow | None) -> Forward:
        """The layer's forward with the change: ``y = f(x) + up (down x)`` for every low-rank family.

        Args:
            forward: the layer's own, f.
            borrow: gives the layer's weights to the families that need them; None where an earlier link has changed
                the layer, so that its weights alone are not what ``forward`` computes.
        """

        def adapted(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            up, down = (factor.to(x.dtype) for factor in self.factors())
            return beside(layer, forward(x, *args, **kwargs), x, up, down)

        return adapted

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors that a file keeps, by the names in ``tensor_names``."""
        raise NotImplementedError

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Adapter":
        """The adapter that ``to_tensors`` described, bit for bit."""
        raise NotImplementedError

    def to_file(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """``to_tensors`` as a file keeps them for a weight of ``shape``, where other tools expect another form."""
        return self.to_tensors()

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> "Adapter":
        """The adapter that ``to_file`` described; kernels of a convolution are flattened.

        Raises:
            ValueError: the tensors are not for a weight of ``shape``.
        """
        adapter = cls.from_tensors({name: t.flatten(1) if t.ndim > 2 else t for name, t in tensors.items()})
        given, wanted = adapter.matrix, (shape[0], math.prod(shape[1:]))
        if given != wanted:
            raise ValueError(f"is for a matrix of {given[0]} x {given[1]}, not of {wanted[0]} x {wanted[1]}")
        return adapter

    def settings(self) -> dict[str, float]:
        """The settings that may differ from layer to layer, by name, in the order of reports."""
        return {}

    def describe(self) -> str:
        """The settings in a few words, for reports: ``rank 8, alpha 8``."""
        return ", ".join(f"{name} {value:g}" for name, value in self.settings().items())
