"""What a run starts from: a new adapter, or an earlier one to train further."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.adapter_set import AdapterSet, Link, WeightOf
from ..models.targets import DIFFUSION_PREFIX, TEXT_PREFIX, Target
from .noise import generator_for
from .options import Method
from .run import Run
from .state import Group
from .workbench import Workbench

_START = 100


def starting_chain(
    run: Run, targets: Sequence[Target], device: torch.device, weight_of: WeightOf | None
) -> AdapterSet:  # fmt: skip
    """The chain to train, on the training device, as ordinary float32 parameters; its last link is the one trained.

    Args:
        weight_of: for a new link whose start depends on the model's weights; without it only the sizes are right.

    Raises:
        ValueError: the rank does not fit, or ``start_from`` is of another kind than the method makes.
    """
    method = run.method
    if run.start_from is None:
        link = Link.create(method.family, targets, method.config, generator_for(run.seed, _START), weight_of)
        return AdapterSet((link.copy_to(device),))
    chain = tuple(link.copy_to(device) for link in run.start_from.chain)
    _check_same_kind(chain[-1], Link.create(method.family, targets, method.config, generator_for(0)))
    return AdapterSet(chain, run.start_from.facts)


def weights_of(bench: Workbench, alive: Callable[[], None]) -> WeightOf:
    """Layer name -> its weight ``[out, in]`` in float32, on the bench's device; ``alive`` is called with each."""
    like = torch.empty(0, device=bench.device)

    def weight_of(name: str) -> Tensor:
        alive()
        with bench.borrow(bench.layers[name], like) as (weight, _):
            return weight.to(torch.float32, copy=True).flatten(1)

    return weight_of


def groups_of(link: Link, method: Method) -> list[Group]:
    """Parameters by learning rate."""
    groups = []
    for prefix, rate in ((DIFFUSION_PREFIX, method.learning_rate), (TEXT_PREFIX, method.text_encoder_lr)):
        adapters = [adapter for name, adapter in link.adapters.items() if name.startswith(prefix)]
        if adapters:
            groups.append(Group([p for adapter in adapters for p in adapter.parameters()], rate))
    return groups


def _check_same_kind(given: Link, wanted: Link) -> None:
    """``start_from`` can go on under the method only if both have the same family, layers and sizes."""
    if _kind(given) != _kind(wanted):
        raise ValueError(
            f"start_from is {given.describe()}; the method makes {wanted.describe()}. "
            "Choose that family's method with the settings it was made with, targets and text_encoder too, "
            "or train without start_from"
        )


def _kind(link: Link) -> Any:
    sizes = {name: [tuple(p.shape) for p in adapter.parameters()] for name, adapter in link.adapters.items()}
    return link.describe(), sizes
