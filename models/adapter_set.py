"""An adapter as users see it: an ordered chain of families on named layers."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import FAMILIES, Adapter
from .attach import Without, attached
from .frozen import Borrow, own_weights
from .targets import Target

WeightOf = Callable[[str], Tensor]


class Link:
    """One family on its layers: the unit of the chain.

    Args:
        family: name in :data:`FAMILIES`.
        adapters: layer name -> its adapter.
        targets: layer name -> where the adapter sits, with the weight's shape.
    """

    def __init__(self, family: str, adapters: Mapping[str, Adapter], targets: Mapping[str, Target]):
        if adapters.keys() != targets.keys():
            raise ValueError(f"adapters and targets differ: {sorted(adapters.keys() ^ targets.keys())[:4]}")
        self.family, self.adapters, self.targets = family, dict(adapters), dict(targets)

    @classmethod
    def create(cls, family: str, targets: Sequence[Target], config: Any, generator: torch.Generator) -> "Link":
        """A new adapter on every target, drawn in the targets' order from ``generator``."""
        kind = FAMILIES[family]
        adapters = {}
        for target in targets:
            try:
                adapters[target.name] = kind.create(target.matrix, config, generator)
            except ValueError as error:
                raise ValueError(f"layer {target.name}: {error}") from error
        return cls(family, adapters, {target.name: target for target in targets})

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for adapter in self.adapters.values() for parameter in adapter.parameters()]

    def describe(self) -> str:
        """``lora (rank 8, alpha 8) on 128 layers``; where layers differ, ``rank 4 to 16``."""
        alike = {adapter.describe() for adapter in self.adapters.values()}
        settings = alike.pop() if len(alike) == 1 else self._ranges()
        return f"{self.family} ({settings}) on {len(self.adapters)} layers"

    def _ranges(self) -> str:
        values: dict[str, set[float]] = {}
        for adapter in self.adapters.values():
            for name, value in adapter.settings().items():
                values.setdefault(name, set()).add(value)
        return ", ".join(
            f"{name} {min(all_):g} to {max(all_):g}" if len(all_) > 1 else f"{name} {min(all_):g}"
            for name, all_ in values.items()
        )

    def describe_size(self) -> str:
        """``797,184 numbers, 3.04 MiB in float32``."""
        numbers = sum(parameter.numel() for parameter in self.parameters())
        return f"{numbers:,} numbers, {numbers * 4 / 2**20:.2f} MiB in float32"

    def copy_to(self, device: torch.device | str) -> "Link":
        """The same values in new parameters on ``device``."""
        with torch.inference_mode(False):
            copies = {
                name: type(adapter).from_tensors({k: v.to(device, copy=True) for k, v in adapter.to_tensors().items()})
                for name, adapter in self.adapters.items()
            }
        return Link(self.family, copies, self.targets)


@dataclass(frozen=True)
class AdapterSet:
    """An ordered chain of links; a later link changes what the earlier ones made of the weights.

    Args:
        chain: the links in order of application.
        facts: what is known of how it was made (base model, steps, prompt ...); saved beside the weights.
    """

    chain: tuple[Link, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for link in self.chain for parameter in link.parameters()]

    def targets(self) -> dict[str, Target]:
        """Every layer that the chain changes, once."""
        return {name: target for link in self.chain for name, target in link.targets.items()}

    def restricted(self, prefix: str) -> "AdapterSet":
        """The part of the chain on layers whose name starts with ``prefix``."""
        return self.only({name for name in self.targets() if name.startswith(prefix)})

    def only(self, layers: Collection[str]) -> "AdapterSet":
        """The part of the chain on ``layers``."""
        links = []
        for link in self.chain:
            kept = {name: adapter for name, adapter in link.adapters.items() if name in layers}
            if kept:
                links.append(Link(link.family, kept, {name: link.targets[name] for name in kept}))
        return AdapterSet(tuple(links), self.facts)

    def dense_changes(self) -> dict[str, Tensor]:
        """Layer name -> change ``[out, in]`` of the layers that some link changes without low-rank factors."""
        on = {name: [link.adapters[name] for link in self.chain if name in link.adapters] for name in self.targets()}
        return {
            name: reduce(torch.add, (adapter.delta().detach() for adapter in adapters))
            for name, adapters in on.items()
            if not all(adapter.low_rank for adapter in adapters)
        }

    @contextmanager
    def attached(self, modules: Mapping[str, nn.Module], borrow: Borrow = own_weights) -> Iterator[Without]:
        """Inside the block the modules' outputs carry the chain's change; always taken off again.

        Gives a way to be without the change for a moment.
        """
        with ExitStack() as stack:
            off: list[Without] = []
            changed: set[str] = set()
            for link in self.chain:
                off.append(stack.enter_context(attached(link.adapters, modules, borrow, changed)))
                changed |= link.adapters.keys()
            yield partial(_without, off)

    def as_lora(self, weight_of: WeightOf | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """The whole chain as one plain LoRA: layer name -> ``(up [out, r], down [r, in])`` of scale 1.

        ``W_n = W_0 + sum_i up_i down_i``, so the factors of the links stand side by side and the rank is
        their sum. ``weight_of`` gives the base weight by layer name, for the families that need it.
        """
        return {name: self._layer_as_lora(name, weight_of) for name in self.targets()}

    @torch.no_grad()
    def _layer_as_lora(self, name: str, weight_of: WeightOf | None) -> tuple[Tensor, Tensor]:
        weight = weight_of(name).float().flatten(1) if weight_of else None
        ups, downs = [], []
        for link in self.chain:
            if name in link.adapters:
                up, down = link.adapters[name].factors(weight)
                ups.append(up)
                downs.append(down)
                weight = None if weight is None else weight + up @ down
        return torch.cat(ups, dim=-1), torch.cat(downs, dim=-2)


@contextmanager
def _without(off: Sequence[Without]) -> Iterator[None]:
    """The links taken off, the last one first, so that the first one's originals remain."""
    with ExitStack() as stack:
        for one in reversed(off):
            stack.enter_context(one())
        yield
