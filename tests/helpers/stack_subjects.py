"""Adapters of several subjects made of single ones, and taken apart again: what batched training is compared with."""

from collections.abc import Sequence

import torch
from hyperbooth.models.adapters.base import AdapterLayer
from hyperbooth.models.adapters.stack import Adapter
from torch import Tensor


def stack_subjects(adapters: Sequence[Adapter]) -> Adapter:
    """Return one adapter whose parameters have a leading dimension of subjects.

    Raises:
        ValueError: there is no adapter, or they differ in family, layers or sizes.
    """
    if not adapters:
        raise ValueError("no adapters to stack; give at least one")
    first, *others = adapters
    for other in others:
        if (other.family, other.targets, other.settings()) != (first.family, first.targets, first.settings()):
            raise ValueError(
                f"adapters of one batch must have the same family, layers and settings: {first.describe()}, and "
                f"{other.describe()}"
            )
    layers = {name: _stack([adapter.layers[name] for adapter in adapters]) for name in first.layers}
    return Adapter(first.family, layers, first.targets)


def unstack_subjects(adapter: Adapter) -> list[Adapter]:
    """Return one adapter for each subject, the inverse of :func:`stack_subjects`.

    Raises:
        ValueError: the layers hold different numbers of subjects.
    """
    counts = {len(next(layer.parameters())) for layer in adapter.layers.values()}
    if len(counts) != 1:
        raise ValueError(f"the adapter's layers hold {sorted(counts)} subjects; all hold the same number")
    return [
        Adapter(adapter.family, {name: _subject(layer, i) for name, layer in adapter.layers.items()}, adapter.targets)
        for i in range(counts.pop())
    ]


def _stack(layers: Sequence[AdapterLayer]) -> AdapterLayer:
    tensors = [layer.to_tensors() for layer in layers]
    return layers[0].with_tensors({name: _stack_tensors([t[name] for t in tensors]) for name in layers[0].tensor_names})


def _stack_tensors(values: Sequence[Tensor]) -> Tensor:
    """Stack the subjects' tensors; a setting that a family keeps as a scalar tensor is the same for all."""
    return torch.stack(list(values)) if values[0].ndim else values[0]


def _subject(layer: AdapterLayer, index: int) -> AdapterLayer:
    tensors = layer.to_tensors()
    return layer.with_tensors({k: value[index].clone() if value.ndim else value for k, value in tensors.items()})
