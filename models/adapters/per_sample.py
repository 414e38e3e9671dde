"""Adapters of several subjects in one batch: one forward in which each sample has an adapter of its own."""

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
