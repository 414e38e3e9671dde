"""The adapter as users see it: an ordered stack of families on named layers."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone.frozen_layers import WeightAccess, module_weights
from ..textual_inversion.embeddings import LearnedEmbedding
from ..units import describe_size
from .base import AdapterLayer, format_setting
from .families import FAMILIES
from .fused import fused_groups
from .inject import DisableAdapters, injected
from .targets import Target
from .weight_update import WeightUpdate, depends_on_weight, total_low_rank_factors

WeightOf = Callable[[str], Tensor]
"""Returns the weight of the base model for a layer's name."""


class Adapter:
    """One family on its layers.

    Args:
        family: name in :data:`FAMILIES`.
        layers: layer name -> the layer's update.
        targets: layer name -> target, with the shape of the weight.

    Raises:
        ValueError: layers and targets have different names.
    """

    def __init__(self, family: str, layers: Mapping[str, AdapterLayer], targets: Mapping[str, Target]):
        if layers.keys() != targets.keys():
            raise ValueError(f"layers and targets differ: {sorted(layers.keys() ^ targets.keys())[:4]}")
        self.family, self.layers, self.targets = family, dict(layers), dict(targets)

    @classmethod
    def create(
        cls, family: str, targets: Sequence[Target], config: Any, generator: torch.Generator,
        weight_of: WeightOf | None = None,
    ) -> "Adapter":  # fmt: skip
        """Create a new layer on every target.

        Args:
            family: name in :data:`FAMILIES`.
            targets: the layers to change; random values are drawn in their order.
            config: the family's settings.
            generator: source of the random values, on the CPU.
            weight_of: weights of the base model, for settings that start from them; without it such settings get
                right sizes only.

        Raises:
            ValueError: a layer is too small for the settings; the message names it.
        """
        layer_class = FAMILIES[family]
        layers = {}
        for target in targets:
            try:
                layers[target.name] = layer_class.create(target.matrix_shape, config, generator)
                if weight_of is not None:
                    layers[target.name].initialize_from_weight(partial(weight_of, target.name), config, generator)
            except ValueError as error:
                raise ValueError(f"layer {target.name}: {error}") from error
        return cls(family, layers, {target.name: target for target in targets})

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all layers, in their order."""
        return [parameter for layer in self.layers.values() for parameter in layer.parameters()]

    def settings(self) -> dict[str, dict[str, float]]:
        """Return layer name -> the layer's settings."""
        return {name: layer.settings() for name, layer in self.layers.items()}

    def describe(self) -> str:
        """Return ``lora (rank 8, alpha 8) on 128 layers``; where layers differ, ``rank 4 to 16``."""
        descriptions = {layer.describe() for layer in self.layers.values()}
        settings = descriptions.pop() if len(descriptions) == 1 else self._describe_ranges()
        return f"{self.family} ({settings}) on {len(self.layers)} layers"

    def _describe_ranges(self) -> str:
        values: dict[str, set[float]] = {}
        for layer in self.layers.values():
            for name, value in layer.settings().items():
                values.setdefault(name, set()).add(value)
        ranges = {name: (format_setting(min(found)), format_setting(max(found))) for name, found in values.items()}
        return ", ".join(
            f"{name} {low} to {high}" if len(values[name]) > 1 else f"{name} {low}"
            for name, (low, high) in ranges.items()
        )

    def describe_size(self) -> str:
        """Return the number of parameters and bytes; where it differs, also the number that a LoRA would have."""
        count = sum(parameter.numel() for parameter in self.parameters())
        lora = sum(layer.settings().get("rank", 0) * sum(layer.matrix_shape) for layer in self.layers.values())
        comparison = f"; a LoRA of this rank would have {lora:,}" if lora not in (0, count) else ""
        return f"{describe_size(self.parameters())}{comparison}"

    def copy_to(self, device: torch.device | str) -> "Adapter":
        """Return the same values in new parameters on ``device``."""
        with torch.inference_mode(False):
            copies = {
                name: layer.with_tensors({k: v.to(device, copy=True) for k, v in layer.to_tensors().items()})
                for name, layer in self.layers.items()
            }
        return Adapter(self.family, copies, self.targets)


@dataclass(frozen=True)
class AdapterStack:
    """An ordered stack of adapters: each one updates the weights that the earlier ones have updated.

    Args:
        adapters: in order of application; may be empty if there are embeddings.
        metadata: what is known of the training (base model, steps, prompt ...); saved with the weights.
        embeddings: learned embeddings of the text encoders.

    Raises:
        ValueError: two adapters have different shapes for a layer's weight.
    """

    adapters: tuple[Adapter, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    embeddings: tuple[LearnedEmbedding, ...] = ()

    def __post_init__(self) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        for target in (target for adapter in self.adapters for target in adapter.targets.values()):
            if shapes.setdefault(target.name, target.shape) != target.shape:
                raise ValueError(
                    f"its adapters are for different models: {target.name} is {shapes[target.name]} in one, "
                    f"{target.shape} in another"
                )

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all adapters, then those of the embeddings."""
        return [parameter for part in (*self.adapters, *self.embeddings) for parameter in part.parameters()]

    def targets(self) -> dict[str, Target]:
        """Return every layer that the stack changes, once."""
        return {name: target for adapter in self.adapters for name, target in adapter.targets.items()}

    def select_prefix(self, prefix: str) -> "AdapterStack":
        """Return the stack on the layers whose name starts with ``prefix``, without embeddings."""
        return self.select_layers({name for name in self.targets() if name.startswith(prefix)})

    def select_layers(self, names: Collection[str]) -> "AdapterStack":
        """Return the stack on the layers of those names, without embeddings."""
        adapters = []
        for adapter in self.adapters:
            layers = {name: layer for name, layer in adapter.layers.items() if name in names}
            if layers:
                adapters.append(Adapter(adapter.family, layers, {name: adapter.targets[name] for name in layers}))
        return AdapterStack(tuple(adapters), self.metadata)

    def weight_updates(self) -> dict[str, list[WeightUpdate]]:
        """Return layer name -> the updates of its weight, in order."""
        return {name: self.weight_updates_of(name) for name in self.targets()}

    @torch.no_grad()
    def weight_updates_of(self, name: str) -> list[WeightUpdate]:
        """Return the updates of one layer's weight, in order.

        One layer at a time saves memory: the updates of a LiDB are far larger than its parameters.
        """
        return [adapter.layers[name].weight_update() for adapter in self.adapters if name in adapter.layers]

    @contextmanager
    def injected(
        self,
        modules: Mapping[str, nn.Module],
        access_weight: WeightAccess = module_weights,
        modified_in_place: Collection[str] = (),
    ) -> Iterator[DisableAdapters]:
        """Patch the modules' forwards inside the context, so that their outputs carry the updates of all adapters.

        Gives a function that disables the adapters temporarily.

        Args:
            modules: the model's modules by layer name.
            access_weight: gives a module's weights, see :mod:`..backbone.frozen_layers`.
            modified_in_place: layers whose output the network may modify in place, see :class:`.LayerContext`.
        """
        with ExitStack() as stack:
            disable: list[DisableAdapters] = []
            changed: set[str] = set()
            for layers in fused_groups([adapter.layers for adapter in self.adapters]):
                context = injected(
                    layers, modules, access_weight, changed=changed, modified_in_place=modified_in_place
                )  # fmt: skip
                disable.append(stack.enter_context(context))
                changed |= layers.keys()
            yield partial(_all_disabled, disable)

    @torch.no_grad()
    def as_lora(self, weight_of: WeightOf | None = None, strength: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the whole stack as one plain LoRA: layer name -> ``(up [out, r], down [r, in])`` of scale 1.

        Args:
            weight_of: weights of the base model, for families that need them; the other families' factors are exact
                on every base.
            strength: of the stack, which the LoRA has at strength 1.

        Raises:
            ValueError: a layer's change has no low rank, or depends on a base that is not given.
        """
        return {
            name: total_low_rank_factors(updates, base_weight(name, updates, weight_of), strength)
            for name, updates in self.weight_updates().items()
        }


def base_weight(name: str, updates: Sequence[WeightUpdate], weight_of: WeightOf | None) -> Tensor | None:
    """Return the base model's weight of a layer, if the updates depend on it.

    Args:
        name: the layer's name.
        updates: the layer's updates.
        weight_of: weights of the base model, or None if there is no model.

    Returns:
        ``[out, in]`` in float32, or None if it is not needed or not available.
    """
    return weight_of(name).float().flatten(1) if weight_of and depends_on_weight(updates) else None


@contextmanager
def _all_disabled(disable: Sequence[DisableAdapters]) -> Iterator[None]:
    """Disable the adapters from the last to the first, which leaves the modules' original forwards."""
    with ExitStack() as stack:
        for one in reversed(disable):
            stack.enter_context(one())
        yield
