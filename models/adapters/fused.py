"""Several low-rank updates of one layer, fused into one parallel branch.

``W + up_1 down_1 + up_2 down_2 = W + [up_1 up_2] [down_1; down_2]``: with concatenated factors two adapters cost one
pass over the layer's input and output instead of two, forward and backward.

The order of summation changes, and with it the last bit. Factors are therefore fused only where gradients are computed,
in training. Outputs without gradients (samples, validation, and every use of the adapters outside of training) are
those of one adapter after the other, bit for bit: a fast fine-tune before its first step gives what the prediction
gives.

Autograd computes the gradient of everything that is fused. A frozen adapter of high rank stays separate: computing its
unused gradient would cost more than the pass that is saved.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..backbone.forward_patch import Forward
from .base import AdapterLayer, CachedFactors
from .layer_context import LayerContext
from .low_rank import low_rank_branch

MAX_FREE_RANK = 16
"""Total rank of frozen factors up to which they are always fused; above it, only with trained ones of at least their
rank."""


class FusedLowRank:
    """Several adapter layers on one layer of the network, with the ``adapted_forward`` of one.

    Args:
        layers: of families with :attr:`.AdapterLayer.is_additive`, of one subject, in order of application.
    """

    def __init__(self, layers: Sequence[AdapterLayer]):
        self.layers = layers

    def adapted_forward(self, context: LayerContext) -> Forward:
        """Return the forward ``y = f(x) + [up_1 up_2 ...] ([down_1; down_2; ...] x)``."""
        factors = [CachedFactors(layer) for layer in self.layers]

        def adapted(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            y, pairs = context.forward(x, *args, **kwargs), [each(x.dtype) for each in factors]
            for up, down in _fuse(pairs) if torch.is_grad_enabled() else pairs:
                y = low_rank_branch(context.layer, y, x, up, down)
            return y

        return adapted


def _fuse(pairs: Sequence[tuple[Tensor, ...]]) -> Sequence[tuple[Tensor, ...]]:
    """Return one pair of factors in place of all, if some train and the frozen ones are of no higher rank."""
    trained, frozen = (
        sum(up.shape[-1] for up, down in pairs if (up.requires_grad or down.requires_grad) is trains)
        for trains in (True, False)
    )
    if not trained or frozen > max(trained, MAX_FREE_RANK):
        return pairs
    ups, downs = zip(*pairs, strict=True)
    return [(torch.cat(ups, -1), torch.cat(downs, -2))]


def fused_groups(adapters: Sequence[Mapping[str, AdapterLayer]]) -> Iterator[Mapping[str, AdapterLayer | FusedLowRank]]:
    """Yield the adapters in order, neighbors that can be fused as one.

    Args:
        adapters: the layers of each adapter by name, in order of application.
    """
    for can_be_fused, group in groupby(adapters, _can_be_fused):
        if not can_be_fused:
            yield from group
            continue
        by_name: dict[str, list[AdapterLayer]] = {}
        for name, layer in (item for layers in group for item in layers.items()):
            by_name.setdefault(name, []).append(layer)
        yield {name: FusedLowRank(layers) if len(layers) > 1 else layers[0] for name, layers in by_name.items()}


def _can_be_fused(layers: Mapping[str, AdapterLayer]) -> bool:
    """Whether the layers are additive and of one subject."""
    return all(layer.is_additive and all(p.ndim == 2 for p in layer.parameters()) for layer in layers.values())
