"""An adapter on a model's layers while it trains, and off them for a moment."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

from torch import nn

from ..backbone.forward_patch import Forward, replaced_forward
from ..backbone.frozen_layers import WeightAccess, module_weights
from .base import AdapterLayer
from .fused import FusedLowRank
from .layer_context import LayerContext

DisableAdapters = Callable[[], AbstractContextManager[None]]
"""Makes a block inside which the modules are as they were before anything was attached."""


@contextmanager
def injected(
    adapters: Mapping[str, AdapterLayer | FusedLowRank],
    modules: Mapping[str, nn.Module],
    access_weight: WeightAccess = module_weights,
    changed: Collection[str] = (),
    modified_in_place: Collection[str] = (),
) -> Iterator[DisableAdapters]:
    """Inside the block, each module's output carries the change of the adapter of its name.

    Args:
        borrow: gives a layer's weights to the families that need them, see :mod:`.frozen`.
        changed: layers that carry another change already.
        written_over: layers whose output the network may write over.

    Raises:
        KeyError: an adapter names a layer that ``modules`` lacks.
    """
    before = {name: modules[name].forward for name in adapters}
    alone = [adapter for adapter in adapters.values() if isinstance(adapter, AdapterLayer)]
    for kind in {type(adapter) for adapter in alone}:
        kind.share_computation(alone)
    with ExitStack() as stack:
        for name, adapter in adapters.items():
            site = LayerContext(
                modules[name], before[name], access_weight, name not in changed, name in modified_in_place
            )
            stack.enter_context(replaced_forward(modules[name], adapter.adapted_forward(site)))
        yield partial(_with_forwards, before, modules)


@contextmanager
def _with_forwards(forwards: Mapping[str, Forward], modules: Mapping[str, nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, forward in forwards.items():
            stack.enter_context(replaced_forward(modules[name], forward))
        yield
