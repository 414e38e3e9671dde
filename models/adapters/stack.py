"""An adapter as users see it: an ordered chain of families on named layers."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import FAMILIES, AdapterLayer
from ..backbone.frozen_layers import WeightAccess, module_weights
from ..textual_inversion.embeddings import LearnedEmbedding
from ..units import describe_size
from .base import format_setting
from .fused import fused_groups
from .inject import DisableAdapters, injected
from .targets import Target
from .weight_update import WeightUpdate, depends_on_weight, total_low_rank_factors

WeightOf = Callable[[str], Tensor]


class Adapter:
    """One family on its layers: the unit of the chain.

    Args:
        family: name in :data:`FAMILIES`.
        layers: layer name -> what changes it.
        targets: layer name -> where the adapter sits, with the weight's shape.
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
        """A new adapter on every target, drawn in the targets' order from ``generator``.

        Args:
            weight_of: layer name -> its weight, for settings that start from it; without it only the sizes are right.
        """
        kind = FAMILIES[family]
        adapters = {}
        for target in targets:
            try:
                adapters[target.name] = kind.create(target.matrix_shape, config, generator)
                if weight_of is not None:
                    adapters[target.name].initialize_from_weight(partial(weight_of, target.name), config, generator)
            except ValueError as error:
                raise ValueError(f"layer {target.name}: {error}") from error
        return cls(family, adapters, {target.name: target for target in targets})

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for adapter in self.layers.values() for parameter in adapter.parameters()]

    def settings(self) -> dict[str, dict[str, float]]:
        """Layer name -> its adapter's settings."""
        return {name: adapter.settings() for name, adapter in self.layers.items()}

    def describe(self) -> str:
        """``lora (rank 8, alpha 8) on 128 layers``; where layers differ, ``rank 4 to 16``."""
        alike = {adapter.describe() for adapter in self.layers.values()}
        settings = alike.pop() if len(alike) == 1 else self._ranges()
        return f"{self.family} ({settings}) on {len(self.layers)} layers"

    def _ranges(self) -> str:
        values: dict[str, set[float]] = {}
        for adapter in self.layers.values():
            for name, value in adapter.settings().items():
                values.setdefault(name, set()).add(value)
        return ", ".join(
            f"{name} {format_setting(min(all_))} to {format_setting(max(all_))}"
            if len(all_) > 1
            else f"{name} {format_setting(min(all_))}"
            for name, all_ in values.items()
        )

    def describe_size(self) -> str:
        """``797,184 numbers, 3.04 MiB in float32``; where it is another number, also what a LoRA would have."""
        numbers = sum(parameter.numel() for parameter in self.parameters())
        lora = sum(a.settings().get("rank", 0) * sum(a.matrix_shape) for a in self.layers.values())
        other = f"; a LoRA of this rank would have {lora:,}" if lora not in (0, numbers) else ""
        return f"{describe_size(self.parameters())}{other}"

    def copy_to(self, device: torch.device | str) -> "Adapter":
        """The same values in new parameters on ``device``."""
        with torch.inference_mode(False):
            copies = {
                name: adapter.with_tensors({k: v.to(device, copy=True) for k, v in adapter.to_tensors().items()})
                for name, adapter in self.layers.items()
            }
        return Adapter(self.family, copies, self.targets)


@dataclass(frozen=True)
class AdapterStack:
    """An ordered chain of links; a later link changes what the earlier ones made of the weights.

    Args:
        chain: the links in order of application.
        facts: what is known of how it was made (base model, steps, prompt ...); saved beside the weights.
        words: new words of the text encoders, beside the chain, which may be empty.

    Raises:
        ValueError: links disagree on the shape of a layer's weight.
    """

    adapters: tuple[Adapter, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    embeddings: tuple[LearnedEmbedding, ...] = ()

    def __post_init__(self) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        for target in (target for link in self.adapters for target in link.targets.values()):
            if shapes.setdefault(target.name, target.shape) != target.shape:
                raise ValueError(
                    f"its links are for different models: {target.name} is {shapes[target.name]} in one, "
                    f"{target.shape} in another"
                )

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for part in (*self.adapters, *self.embeddings) for parameter in part.parameters()]

    def targets(self) -> dict[str, Target]:
        """Every layer that the chain changes, once."""
        return {name: target for link in self.adapters for name, target in link.targets.items()}

    def select_prefix(self, prefix: str) -> "AdapterStack":
        """The part of the chain on layers whose name starts with ``prefix``."""
        return self.select_layers({name for name in self.targets() if name.startswith(prefix)})

    def select_layers(self, layers: Collection[str]) -> "AdapterStack":
        """The part of the chain on ``layers``."""
        links = []
        for link in self.adapters:
            kept = {name: adapter for name, adapter in link.layers.items() if name in layers}
            if kept:
                links.append(Adapter(link.family, kept, {name: link.targets[name] for name in kept}))
        return AdapterStack(tuple(links), self.metadata)

    def weight_updates(self) -> dict[str, list[WeightUpdate]]:
        """Layer name -> what is done to its weight, in order."""
        return {name: self.weight_updates_of(name) for name in self.targets()}

    @torch.no_grad()
    def weight_updates_of(self, name: str) -> list[WeightUpdate]:
        """What is done to the weight of one layer: a packed adapter of few numbers may be large when unfolded."""
        return [link.layers[name].weight_update() for link in self.adapters if name in link.layers]

    @contextmanager
    def injected(
        self,
        modules: Mapping[str, nn.Module],
        access_weight: WeightAccess = module_weights,
        modified_in_place: Collection[str] = (),
    ) -> Iterator[DisableAdapters]:
        """Inside the block the modules' outputs carry the chain's change; always taken off again.

        Gives a way to be without the change for a moment.

        Args:
            borrow: gives a layer's weights, see :mod:`.frozen`.
            written_over: layers whose output the network may write over, see :class:`.site.Site`.
        """
        with ExitStack() as stack:
            off: list[DisableAdapters] = []
            changed: set[str] = set()
            for adapters in fused_groups([link.layers for link in self.adapters]):
                off.append(stack.enter_context(injected(adapters, modules, access_weight, changed, modified_in_place)))
                changed |= adapters.keys()
            yield partial(_without, off)

    @torch.no_grad()
    def as_lora(self, weight_of: WeightOf | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """The whole chain as one plain LoRA: layer name -> ``(up [out, r], down [r, in])`` of scale 1.

        ``weight_of`` gives the base weight by layer name, for the families that need it; what the others give is
        exact on every base.

        Raises:
            ValueError: a layer's change has no low rank, or depends on a base that is not given.
        """
        return {
            name: total_low_rank_factors(steps, base_weight(name, steps, weight_of))
            for name, steps in self.weight_updates().items()
        }


def base_weight(name: str, steps: Sequence[WeightUpdate], weight_of: WeightOf | None) -> Tensor | None:
    """The layer's weight ``[out, in]`` in float32, if the steps ask for it and it can be had."""
    return weight_of(name).float().flatten(1) if weight_of and depends_on_weight(steps) else None


@contextmanager
def _without(off: Sequence[DisableAdapters]) -> Iterator[None]:
    """The links taken off, the last one first, so that the first one's originals remain."""
    with ExitStack() as stack:
        for one in reversed(off):
            stack.enter_context(one())
        yield
