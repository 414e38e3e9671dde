"""ComfyUI weight adapter for an adapter stack: the updates of one layer, for the stock loaders and Apply Adapter.

It is registered with ``comfy.weight_adapter``, so files of every family open in the stock *Load LoRA* nodes, with
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

logger = logging.getLogger("hyperbooth")

_UPDATES: dict[str, type] = {kind.__name__: kind for kind in (AddLowRank, ProjectOut, AddDense)}


class StackWeightAdapter(comfy.weight_adapter.WeightAdapterBase):
    """The weight updates of an adapter stack on one layer, applied in order, each scaled by the patch's strength.

    ComfyUI rebuilds adapters as ``type(a)(a.loaded_keys, moved_weights)`` and moves only the tensors at the top level
    of ``weights``. The updates are therefore stored flat: the class name of an update, then its tensors.

    Args:
        loaded_keys: names of the file's tensors that the adapter was read from.
        weights: the flat updates.
    """

    name = "hyperbooth"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]):
        self.loaded_keys, self.weights = loaded_keys, weights

    @classmethod
    def of(cls, updates: Iterable[WeightUpdate], loaded_keys: Iterable[str] = ()) -> "StackWeightAdapter":
        """Create the weight adapter of ``updates``."""
        return cls(set(loaded_keys), tuple(part for update in updates for part in _flat(update)))

    @classmethod
    def load(
        cls, x: str, lora: Mapping[str, Tensor], alpha: float | None, dora_scale: Tensor | None,
        loaded_keys: set[str] | None = None,
    ) -> "StackWeightAdapter | None":  # fmt: skip
        """Read the updates of one layer from a file's tensors; ComfyUI's loader calls this for every layer.

        Args:
            x: ComfyUI's name of the layer in LoRA files.
            lora: the file's tensors.
            alpha: of a stock LoRA; unused, as is ``dora_scale``.
            dora_scale: of a stock DoRA.
            loaded_keys: names that the loader has read so far; unused.

        Returns:
            The adapter, or None if the file has no updates of ours for this layer.

        Raises:
            ValueError: the file is ours, but damaged.
        """
        updates: list[WeightUpdate] = []
        names: set[str] = set()
        for part in _parts(lora).get(x, ()):
            of_part, of_tensors = read_updates(lora, x, part)
            updates += of_part
            names |= of_tensors
        return cls.of(updates, names) if updates else None

    def updates(self, device: torch.device, dtype: torch.dtype) -> Iterator[WeightUpdate]:
        """Iterate over the updates, with their tensors in ``dtype`` on ``device``."""
        rest = list(self.weights)
        while rest:
            kind = _UPDATES[rest.pop(0)]
            values = [rest.pop(0).to(device, dtype) for _ in kind._fields]
            yield kind(*values)

    def removes(self, q: Tensor) -> bool:
        """Return whether one of the updates projects out the orthonormal directions ``q [out, r]``."""
        found = (update.q for update in self.updates(q.device, q.dtype) if isinstance(update, ProjectOut))
        return any(other.shape == q.shape and torch.dist(other @ (other.mT @ q), q) < 1e-3 for other in found)

    def calculate_weight(
        self, weight: Tensor, key: str, strength: float, strength_model: float, offset: Any,
        function: Callable[[Tensor], Tensor], intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:  # fmt: skip
        """Add the change of all updates to ``weight`` in place, computed in float32.

        In place, because ComfyUI may pass a view of a larger weight. An adapter that does not fit the layer leaves the
        weight unchanged and logs an error, as stock adapters do.

        Args:
            weight: ``[out, in, ...]``, with the patches before this one.
            key: the weight's name, for the log.
            strength: factor of every update.
            strength_model: ComfyUI's factor of the weight itself; applied by the caller, unused here.
            offset: ComfyUI's view of the weight; taken by the caller, unused here.
            function: applied to the change before it is added.
            intermediate_dtype: unused; the change is computed in float32.
            original_weight: unused.
        """
        flat = weight.flatten(1).float()
        try:
            change = total_delta(self.updates(weight.device, torch.float32), flat, strength)
            weight += function(change.reshape(weight.shape).to(weight.dtype))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.error("the adapter does not fit %s, %s: %s", key, tuple(weight.shape), error)
        return weight

    def bypass_forward(self, org_forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer and add the updates in parallel branches, without access to its weight.

        Args:
            org_forward: the layer's forward, bound to the layer or to ComfyUI's hook on it.
            x: the layer's input.
            *args: more arguments of the forward.
            **kwargs: more keyword arguments of the forward.
        """
        y = org_forward(x, *args, **kwargs)
        updates = list(self.updates(x.device, x.dtype))
        bias = self._bias(org_forward, y) if depends_on_weight(updates) else 0.0
        for update in updates:
            if isinstance(update, ProjectOut):
                y = y - self.multiplier * self._projection(update.q, y - bias)
            else:
                factors = (update.diff,) if isinstance(update, AddDense) else (update.down, update.up)
                y = y + self.multiplier * self._product(factors, x)
        return y

    def _product(self, factors: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """Apply the first factor with the layer's own kernel and stride, then the others pointwise."""
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
        """Return ``q q^T y`` over the channels of ``y``."""
        if not self.is_conv:
            return F.linear(F.linear(y, q.mT), q)
        one = (...,) + (None,) * self.conv_dim
        return self._convolve(self._convolve(y, q.mT[one]), q[one])

    def _bias(self, org_forward: Callable[..., Tensor], y: Tensor) -> Tensor | float:
        """Return the layer's bias as the output contains it; no update changes the bias."""
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


def _flat(update: WeightUpdate) -> tuple[Any, ...]:
    return (type(update).__name__, *(tensor.detach() for tensor in update))


_last: tuple[Callable[[], Tensor | None], int, int, dict[str, list[AdapterPart]]] = (lambda: None, 0, 0, {})
"""The most recent file (its first tensor, id and length) and its parts, cached because a loader asks layer by layer."""


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
    """Register the weight adapter with ComfyUI's loaders, replacing an earlier registration by another import."""
    adapters = comfy.weight_adapter.adapters
    adapters[:] = [kind for kind in adapters if kind.__name__ != StackWeightAdapter.__name__]
    adapters.append(StackWeightAdapter)
