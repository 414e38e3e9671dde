"""The full change of a weight: ordinary fine-tuning, kept as a difference."""

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


@dataclass(frozen=True)
class FullConfig:
    """Full fine-tuning has no settings of its own."""


class Full(AdapterLayer):
    """``W' = W + D``: every number of the weight may change (DreamBooth's own parametrisation, 2208.12242).

    The model's weight stays as it is, whatever it is kept in; D is float32, so that steps smaller than a half-precision
    weight's resolution add up.

    Args:
        diff: D ``[out, in]``, zero at the start.
    """

    family = "full"
    starts_as_identity = True
    tensor_names = ("diff",)

    def __init__(self, diff: Tensor):
        super().__init__()
        self.diff = nn.Parameter(diff)

    @classmethod
    def create(cls, shape: tuple[int, int], config: FullConfig, generator: torch.Generator) -> "Full":
        """Zero: training starts from the unchanged model."""
        return cls(torch.zeros(shape))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.diff.shape[-2], self.diff.shape[-1]

    def weight_update(self) -> AddDense:
        return AddDense(self.diff)

    def adapted_forward(self, site: LayerContext) -> Forward:
        """The layer with ``W + D`` for a weight, put together for each use and not kept; ``D x`` beside a layer that
        an earlier link has changed."""
        if not site.is_unmodified:
            return lambda x: site.forward(x) + self._beside(site.layer, x)
        function = TrainedConvolution if isinstance(site.layer, nn.Conv2d) else TrainedLinear
        return lambda x: function.apply(x, self.diff, site.layer, site.access_weight)

    def _beside(self, layer: nn.Module, x: Tensor) -> Tensor:
        diff = self.diff.to(x.dtype)
        if not isinstance(layer, nn.Conv2d):
            return F.linear(x, diff)
        kernel = diff.view(len(diff), -1, *layer.kernel_size)
        return F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)

    def to_tensors(self) -> dict[str, Tensor]:
        return {"diff": self.diff.detach()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Full":
        return Full(tensors["diff"])

    def describe(self) -> str:
        return "every number"
