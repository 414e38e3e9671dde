"""Injects adapter layers into a model's modules, with a way to disable them temporarily."""

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
"""Returns a context inside which the modules compute as they did before the injection."""


@contextmanager
def injected(
    layers: Mapping[str, AdapterLayer | FusedLowRank],
    modules: Mapping[str, nn.Module],
    access_weight: WeightAccess = module_weights,
    *,
    changed: Collection[str] = (),
    modified_in_place: Collection[str] = (),
) -> Iterator[DisableAdapters]:
    """Patch the modules' forwards inside the context, so that each output carries the update of the layer of its name.

    Args:
        layers: module name -> what changes its weight.
        modules: the model's modules by name.
        access_weight: gives a module's weights to the families that need them, see :mod:`..backbone.frozen_layers`.
        changed: names of modules that carry an earlier update already.
        modified_in_place: names of modules whose output the network may modify in place.

    Raises:
        KeyError: ``modules`` lacks a name of ``layers``.
    """
    before = {name: modules[name].forward for name in layers}
    separate = [layer for layer in layers.values() if isinstance(layer, AdapterLayer)]
    for family in {type(layer) for layer in separate}:
        family.share_computation(separate)
    with ExitStack() as stack:
        for name, layer in layers.items():
            context = LayerContext(
                layer=modules[name],
                forward=before[name],
                access_weight=access_weight,
                is_unmodified=name not in changed,
                modified_in_place=name in modified_in_place,
            )
            stack.enter_context(replaced_forward(modules[name], layer.adapted_forward(context)))
        yield partial(_with_forwards, before, modules)


@contextmanager
def _with_forwards(forwards: Mapping[str, Forward], modules: Mapping[str, nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, forward in forwards.items():
            stack.enter_context(replaced_forward(modules[name], forward))
        yield
