"""The surroundings of an adapter layer in a network that trains or samples."""

from dataclasses import dataclass

from torch import nn

from ..backbone.forward_patch import Forward
from ..backbone.frozen_layers import WeightAccess, module_weights


@dataclass(frozen=True, kw_only=True)
class LayerContext:
    """One layer of a network, and what an adapter layer may rely on there.

    Args:
        layer: the linear layer or convolution.
        forward: the forward that was there before, with the updates of earlier adapters.
        access_weight: context manager that gives the layer's own weight and bias, see :mod:`..backbone.frozen_layers`.
        is_unmodified: no earlier adapter has changed the layer, which means that ``forward`` computes with the layer's
            own weight.
        modified_in_place: the network may modify the layer's output in place (``x += f(x)``), which means that the
            output cannot be kept for backward.
    """

    layer: nn.Module
    forward: Forward
    access_weight: WeightAccess = module_weights
    is_unmodified: bool = True
    modified_in_place: bool = False
