"""Adapters that each add a low rank to a layer, in one pass beside it.

``W + up_1 down_1 + up_2 down_2 = W + [up_1 up_2] [down_1; down_2]``: with the factors side by side two links cost one
walk over the layer's input and output instead of two, forward and backward.

Sums then come in another order, and the last bit with them. So it is done where gradients are worked out, in training;
outputs without them, as samples, validations and everybody's own use of the adapters have, are those of one link after
the other bit for bit: a fast fine-tune before its first step gives what the prediction gives.

Autograd works out the gradient of all of what is joined. A frozen link of a high rank is left by itself: its share,
worked out for nothing, would cost more than the walk that is spared.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..adapters import AdapterLayer
from ..backbone.forward_patch import Forward
from .base import CachedFactors
from .layer_context import LayerContext
from .low_rank import low_rank_branch

MAX_FREE_RANK = 16
"""Rank of frozen factors that always join; higher ones join a trained rank that is at least as high."""


class FusedLowRank:
    """What several links do to one layer, as :class:`~.adapters.base.AdapterLayer` puts one there.

    Args:
        adapters: of families that :attr:`~.adapters.base.AdapterLayer.is_additive`, one subject's, in the links' order.
    """

    def __init__(self, adapters: Sequence[AdapterLayer]):
        self.layers = adapters

    def adapted_forward(self, site: LayerContext) -> Forward:
        """``y = f(x) + [up_1 up_2 ...] ([down_1; down_2; ...] x)``."""
        factors = [CachedFactors(adapter) for adapter in self.layers]

        def adapted(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            y, pairs = site.forward(x, *args, **kwargs), [each(x.dtype) for each in factors]
            for up, down in _side_by_side(pairs) if torch.is_grad_enabled() else pairs:
                y = low_rank_branch(site.layer, y, x, up, down)
            return y

        return adapted


def _side_by_side(pairs: Sequence[tuple[Tensor, ...]]) -> Sequence[tuple[Tensor, ...]]:
    """One pair of factors instead of all, where some train and the frozen ones are of no higher rank."""
    trained, frozen = (
        sum(up.shape[-1] for up, down in pairs if (up.requires_grad or down.requires_grad) is trains)
        for trains in (True, False)
    )
    if not trained or frozen > max(trained, MAX_FREE_RANK):
        return pairs
    ups, downs = zip(*pairs, strict=True)
    return [(torch.cat(ups, -1), torch.cat(downs, -2))]


def fused_groups(links: Sequence[Mapping[str, AdapterLayer]]) -> Iterator[Mapping[str, AdapterLayer | FusedLowRank]]:
    """``links``, layer name -> its adapter, with neighbours in one where both add a low rank."""
    for joins, group in groupby(links, _joins):
        if not joins:
            yield from group
            continue
        of: dict[str, list[AdapterLayer]] = {}
        for name, adapter in (item for adapters in group for item in adapters.items()):
            of.setdefault(name, []).append(adapter)
        yield {name: FusedLowRank(found) if len(found) > 1 else found[0] for name, found in of.items()}


def _joins(adapters: Mapping[str, AdapterLayer]) -> bool:
    """Whether these stand beside any others of their kind: they add a low rank, and are one subject's."""
    return all(a.is_additive and all(p.ndim == 2 for p in a.parameters()) for a in adapters.values())
