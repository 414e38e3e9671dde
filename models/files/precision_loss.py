"""What fewer bits cost: a file in half precision holds a change that is not quite the one trained."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..adapters import AdapterLayer
from ..adapters.stack import AdapterStack
from ..adapters.weight_update import AddDense, AddLowRank, ProjectOut, WeightUpdate
from .adapter_file import cast_for_file
from .lora_import import lora_factors
from .lora_key_formats import DIFFERENCE


@torch.no_grad()
def adapter_precision_loss(adapter: AdapterStack, dtype: torch.dtype) -> float:
    """``||dW' - dW||_F / ||dW||_F`` over all layers and links, with dW' the change of the numbers rounded to ``dtype``.

    Of a projection it is the projector's, ``Q Q^T``, whatever weight it is put on. 0 if nothing is changed at all.
    """
    adapters = [one for link in adapter.adapters for one in link.layers.values()]
    return _relative((one.weight_update(), _rounded(one, dtype).weight_update()) for one in adapters)


@torch.no_grad()
def tensor_precision_loss(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """The same for the tensors of a file in another tool's form: a plain LoRA, and whole differences."""
    return _relative(zip(_plain_steps(tensors), _plain_steps(cast_for_file(tensors, dtype)), strict=True))


def _plain_steps(tensors: Mapping[str, Tensor]) -> list[WeightUpdate]:
    dense = [AddDense(tensor.float()) for name, tensor in tensors.items() if name.endswith(DIFFERENCE)]
    low_rank = {name: tensor for name, tensor in tensors.items() if not name.endswith(DIFFERENCE)}
    return [*dense, *(AddLowRank(*part.matrices) for part in lora_factors(low_rank))]


def _relative(steps: Iterable[tuple[WeightUpdate, WeightUpdate]]) -> float:
    error = norm = 0.0
    for exact, rounded in steps:
        error += _squared_distance(exact, rounded)
        norm += _squared_distance(exact, None)
    return math.sqrt(error / norm) if norm else 0.0


def _rounded(adapter: AdapterLayer, dtype: torch.dtype) -> AdapterLayer:
    return adapter.with_tensors({name: t.float() for name, t in cast_for_file(adapter.to_tensors(), dtype).items()})


def _squared_distance(step: WeightUpdate, other: WeightUpdate | None) -> float:
    """``||dW - dW'||_F^2``, of ``other`` None ``||dW||_F^2``.

    From factors, without a matrix of the weight's size: ``||U D||_F^2 = <U^T U, D D^T>``, where the difference of two
    products is the product of ``[U, -U']`` and ``[D; D']``. In float64, because most of it cancels.
    """
    if isinstance(step, AddDense):
        diff = step.diff if other is None else step.diff - other.diff
        return diff.double().square().sum().item()
    up, down = _factors(step)
    if other is not None:
        more, under = _factors(other)
        up, down = torch.cat([up, -more], -1), torch.cat([down, under], -2)
    return max(((up.mT @ up) * (down @ down.mT)).sum().item(), 0.0)


def _factors(step: WeightUpdate) -> tuple[Tensor, Tensor]:
    up, down = (step.q, step.q.mT) if isinstance(step, ProjectOut) else step.low_rank_factors()
    return up.double(), down.double()
