"""Adapters of several subjects in one batch: one forward in which each sample has an adapter of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import AdapterLayer
from .parameter_layout import ParameterLayout
from .stack import Adapter


def batched_adapter(
    layout: ParameterLayout, theta: Tensor, share_down: bool, train_shared_down: bool = False
) -> Adapter:  # fmt: skip
    """Return a new adapter of several subjects, see :meth:`.ParameterLayout.unpack`.

    Args:
        layout: the meaning of theta.
        theta: ``[subjects, N]``.
        share_down: the subjects differ only in each layer's first tensor, the up factor. The other tensors, the down
            factor, are then the first subject's, without a dimension of subjects.
        train_shared_down: whether the shared tensors require a gradient, too.
    """
    adapter = layout.unpack(theta)
    if not share_down:
        return adapter
    layers = {name: _with_shared_down(layer, train_shared_down) for name, layer in adapter.layers.items()}
    return Adapter(adapter.family, layers, adapter.targets)


def _with_shared_down(layer: AdapterLayer, trains: bool) -> AdapterLayer:
    up, tensors = layer.tensor_names[0], layer.to_tensors()
    with torch.inference_mode(False):
        shared = layer.with_tensors({name: value if name == up else value[0] for name, value in tensors.items()})
    for name, parameter in shared.named_parameters():
        parameter.requires_grad_(trains or name == up)
    return shared


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
