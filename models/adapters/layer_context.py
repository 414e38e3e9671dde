"""Where an adapter sits while it trains."""

from dataclasses import dataclass

from torch import nn

from ..backbone.forward_patch import Forward
from ..backbone.frozen_layers import WeightAccess, module_weights


@dataclass(frozen=True)
class LayerContext:
    """A layer of a network, and what an adapter may count on there.

    Args:
        layer: linear, or a convolution.
        forward: what there was before; earlier links are in it.
        borrow: gives the layer's own weight and bias.
        alone: no earlier link has changed the layer, so that its weights are what ``forward`` computes with.
        written_over: the network may write over what the layer returns (``x += f(x)``), so that nothing of it can be
            kept for backward.
    """

    layer: nn.Module
    forward: Forward
    access_weight: WeightAccess = module_weights
    is_unmodified: bool = True
    modified_in_place: bool = False
