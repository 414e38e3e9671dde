"""Our adapters as ComfyUI's own kind: what a chain does to one layer, for the stock loaders and for Apply.

Registered with ``comfy.weight_adapter``, so that files of every family open in the stock *Load LoRA* nodes, with
strength, hooks and their schedules, patches before and after, and bypass.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import comfy.ops
import comfy.weight_adapter
import torch
import torch.nn.functional as F
from torch import Tensor

from ....models.adapters.weight_update import (
    AddDense,
    AddLowRank,
    ProjectOut,
    WeightUpdate,
    depends_on_weight,
    total_delta,
)
from ....models.files.comfyui_keys import AdapterPart, parts_by_layer, read_updates

_KINDS: dict[str, type] = {kind.__name__: kind for kind in (AddLowRank, ProjectOut, AddDense)}


class StackWeightAdapter(comfy.weight_adapter.WeightAdapterBase):
    """The steps of a chain on one layer, in order, each at the strength given.

    ComfyUI rebuilds adapters as ``type(a)(a.loaded_keys, tensors moved)`` and moves the tensors at the top level of
    ``weights`` only, so that steps lie flat in it: a step's name, then its tensors.
    """

    name = "hyperbooth"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]):
        self.loaded_keys, self.weights = loaded_keys, weights

    @classmethod
    def of(cls, steps: Iterable[WeightUpdate], loaded_keys: Iterable[str] = ()) -> "StackWeightAdapter":
        """The adapter of ``steps``."""
        return cls(set(loaded_keys), tuple(part for step in steps for part in _flat(step)))

    @classmethod
    def load(
        cls, x: str, lora: Mapping[str, Tensor], alpha: float | None, dora_scale: Tensor | None,
        loaded_keys: set[str] | None = None,
    ) -> "StackWeightAdapter | None":  # fmt: skip
        """What the file's tensors say of layer ``x``; None if they are not ours."""
        steps: list[WeightUpdate] = []
        names: set[str] = set()
        for part in _parts(lora).get(x, ()):
            more, taken = read_updates(lora, x, part)
            steps += more
            names |= taken
        return cls.of(steps, names) if steps else None

    def steps(self, device: torch.device, dtype: torch.dtype) -> Iterator[WeightUpdate]:
        """The steps, moved."""
        rest = list(self.weights)
        while rest:
            kind = _KINDS[rest.pop(0)]
            values = [rest.pop(0).to(device, dtype) for _ in kind._fields]
            yield kind(*values)

    def removes(self, q: Tensor) -> bool:
        """Whether one of its steps takes the directions ``q`` away."""
        found = (step.q for step in self.steps(q.device, q.dtype) if isinstance(step, ProjectOut))
        return any(other.shape == q.shape and torch.dist(other @ (other.mT @ q), q) < 1e-3 for other in found)

    def calculate_weight(
        self, weight: Tensor, key: str, strength: float, strength_model: float, offset: Any,
        function: Callable[[Tensor], Tensor], intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:  # fmt: skip
        """Every step on what the weight is by then, in float32; in place, because ComfyUI may have given a part of a
        larger weight."""
        flat = weight.flatten(1).float()
        try:
            change = total_delta(self.steps(weight.device, torch.float32), flat, strength)
            weight += function(change.reshape(weight.shape).to(weight.dtype))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # as stock adapters do: a picture without it, and a line in the log
            logging.error("HyperBooth: the adapter does not fit %s, %s: %s", key, tuple(weight.shape), error)
        return weight

    def bypass_forward(self, org_forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The steps beside the layer, whose weight is not needed."""
        y = org_forward(x, *args, **kwargs)
        steps = list(self.steps(x.device, x.dtype))
        bias = self._bias(org_forward, y) if depends_on_weight(steps) else 0.0
        for step in steps:
            if isinstance(step, ProjectOut):
                y = y - self.multiplier * self._projection(step.q, y - bias)
            else:
                factors = (step.diff,) if isinstance(step, AddDense) else (step.down, step.up)
                y = y + self.multiplier * self._product(factors, x)
        return y

    def _product(self, factors: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """The first factor in the layer's own geometry, then the second token by token."""
        if not self.is_conv:
            for factor in factors:
                x = F.linear(x, factor)
            return x
        first, *others = factors
        x = self._convolve(x, first.unflatten(1, (-1, *self.kernel_size)), **self.kw_dict)
        for factor in others:
            x = self._convolve(x, factor[(...,) + (None,) * self.conv_dim])
        return x

    def _projection(self, q: Tensor, y: Tensor) -> Tensor:
        """``q q^T y``."""
        if not self.is_conv:
            return F.linear(F.linear(y, q.mT), q)
        one = (...,) + (None,) * self.conv_dim
        return self._convolve(self._convolve(y, q.mT[one]), q[one])

    def _bias(self, org_forward: Callable[..., Tensor], y: Tensor) -> Tensor | float:
        """b, as the output has it; no step of ours changes it."""
        owner = org_forward.__self__
        layer = owner.module if isinstance(owner, comfy.weight_adapter.BypassForwardHook) else owner
        if layer.bias is None:
            return 0.0
        bias = layer.bias.to(y)
        if isinstance(layer, comfy.ops.CastWeightBiasOp):
            for patch in layer.bias_function:
                bias = patch(bias)
        return bias[(...,) + (None,) * self.conv_dim]

    def _convolve(self, x: Tensor, kernel: Tensor, **geometry: Any) -> Tensor:
        return (F.conv1d, F.conv2d, F.conv3d)[self.conv_dim - 1](x, kernel, **geometry)


def _flat(step: WeightUpdate) -> tuple[Any, ...]:
    return (type(step).__name__, *(tensor.detach() for tensor in step))


_last: tuple[Callable[[], Tensor | None], int, int, dict[str, list[AdapterPart]]] = (lambda: None, 0, 0, {})
"""The file asked for last (its first tensor, id and length) and its parts: a loader asks for every layer in turn."""


def _parts(lora: Mapping[str, Tensor]) -> dict[str, list[AdapterPart]]:
    global _last
    first = next(iter(lora.values()), None)
    if first is None:
        return {}
    known, name, length, parts = _last
    if known() is not first or (name, length) != (id(lora), len(lora)):
        parts = parts_by_layer(lora)
        _last = (weakref.ref(first), id(lora), len(lora), parts)
    return parts


def register() -> None:
    """Make the stock loaders know our files; once, however often the pack is loaded."""
    adapters = comfy.weight_adapter.adapters
    adapters[:] = [kind for kind in adapters if kind.__name__ != StackWeightAdapter.__name__]
    adapters.append(StackWeightAdapter)
