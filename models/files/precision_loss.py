"""Precision loss: how much of a trained change is lost when a file keeps it in half precision."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..adapters import AdapterLayer
from ..adapters.stack import AdapterStack
from ..adapters.weight_update import AddDense, AddLowRank, ProjectOut, WeightUpdate, low_rank_squared_norm
from .adapter_file import cast_for_file
from .lora_import import lora_factors
from .lora_key_formats import DIFFERENCE


@torch.no_grad()
def adapter_precision_loss(adapter: AdapterStack, dtype: torch.dtype) -> float:
    """Return ``||dW' - dW||_F / ||dW||_F`` over all layers of the stack, dW' the change of values rounded to ``dtype``.

    For a projection it is that of the projector ``Q Q^T``, independent of the weight that is projected. 0 if nothing is
    changed at all. No weight of the base model is read.
    """
    layers = [layer for one in adapter.adapters for layer in one.layers.values()]
    return _relative_error((layer.weight_update(), _rounded(layer, dtype).weight_update()) for layer in layers)


@torch.no_grad()
def tensor_precision_loss(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """Return the relative error that ``dtype`` brings into a file of another tool's key format.

    Args:
        tensors: of the file: the factors of a plain LoRA, and full differences.
        dtype: of the file's tensors.
    """
    return _relative_error(zip(_weight_updates(tensors), _weight_updates(cast_for_file(tensors, dtype)), strict=True))


def _weight_updates(tensors: Mapping[str, Tensor]) -> list[WeightUpdate]:
    dense = [AddDense(tensor.float()) for name, tensor in tensors.items() if name.endswith(DIFFERENCE)]
    low_rank = {name: tensor for name, tensor in tensors.items() if not name.endswith(DIFFERENCE)}
    return [*dense, *(AddLowRank(*pair.matrices) for pair in lora_factors(low_rank))]


def _relative_error(updates: Iterable[tuple[WeightUpdate, WeightUpdate]]) -> float:
    """Return the relative Frobenius error over pairs ``(exact, rounded)``."""
    error = norm = 0.0
    for exact, rounded in updates:
        error += _squared_distance(exact, rounded)
        norm += _squared_distance(exact, None)
    return math.sqrt(error / norm) if norm else 0.0


def _rounded(layer: AdapterLayer, dtype: torch.dtype) -> AdapterLayer:
    return layer.with_tensors({name: t.float() for name, t in cast_for_file(layer.to_tensors(), dtype).items()})


def _squared_distance(update: WeightUpdate, other: WeightUpdate | None) -> float:
    """Return ``||dW - dW'||_F^2``, or ``||dW||_F^2`` if ``other`` is None.

    From factors in float64, see :func:`.low_rank_squared_norm`.
    """
    if isinstance(update, AddDense):
        diff = update.diff if other is None else update.diff - other.diff
        return diff.double().square().sum().item()
    up, down = _factors(update)
    if other is not None:
        other_up, other_down = _factors(other)
        up, down = torch.cat([up, -other_up], -1), torch.cat([down, other_down], -2)
    return low_rank_squared_norm(up, down)


def _factors(update: WeightUpdate) -> tuple[Tensor, Tensor]:
    up, down = (update.q, update.q.mT) if isinstance(update, ProjectOut) else update.low_rank_factors()
    return up.double(), down.double()
