"""Full fine-tuning: the dense change of a weight, kept as a difference."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbone.forward_patch import Forward
from ..base import AdapterLayer
from ..layer_context import LayerContext
from ..weight_update import AddDense
from .autograd import TrainedConvolution, TrainedLinear


@dataclass(frozen=True, kw_only=True)
class FullConfig:
    """Full fine-tuning has no settings of its own."""


class Full(AdapterLayer):
    """``W' = W + D``: every value of the weight may change (DreamBooth's own parametrization, arXiv 2208.12242).

    The model's weight stays unchanged in its own precision. D is float32, in which steps below the resolution of a
    half-precision weight add up.

    Args:
        diff: D ``[out, in]``; initially zero.
    """

    family = "full"
    tensor_names = ("diff",)

    def __init__(self, diff: Tensor):
        super().__init__()
        self.diff = nn.Parameter(diff)

    @classmethod
    def create(cls, shape: tuple[int, int], config: FullConfig, generator: torch.Generator) -> "Full":
        """Set D to zero, which makes training start from the unchanged model."""
        return cls(torch.zeros(shape))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.diff.shape[-2], self.diff.shape[-1]

    def weight_update(self) -> AddDense:
        """Return ``W + s D``."""
        return AddDense(self.diff)

    def adapted_forward(self, context: LayerContext) -> Forward:
        """Return the layer's forward with ``W + D`` as its weight, a sum computed for each use and not kept.

        If an earlier adapter has changed the layer, the forward adds ``D x`` as a parallel branch instead.
        """
        if not context.is_unmodified:
            return lambda x: context.forward(x) + self._branch(context.layer, x)
        function = TrainedConvolution if isinstance(context.layer, nn.Conv2d) else TrainedLinear
        return lambda x: function.apply(x, self.diff, context.layer, context.access_weight)

    def _branch(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return ``D x``."""
        diff = self.diff.to(x.dtype)
        if not isinstance(layer, nn.Conv2d):
            return F.linear(x, diff)
        kernel = diff.view(len(diff), -1, *layer.kernel_size)
        return F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return D as ``diff``."""
        return {"diff": self.diff.detach()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Full":
        """Return the full change with ``tensors["diff"]`` as D."""
        return Full(tensors["diff"])

    def describe(self) -> str:
        """Return ``every weight``: there are no settings."""
        return "every weight"
