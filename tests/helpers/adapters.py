"""Adapters of every family as training would leave them, and the papers' formulas for them."""

from typing import Any

import torch
from hyperbooth.models.adapters import FullConfig, LiDBConfig, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import select_targets
from hyperbooth.nodes.bridge.model.layers import layer_shapes, trainable_layers
from torch import Tensor

from helpers import reference

CONFIGS = {
    "lora": LoRAConfig(rank=3, alpha=1.5),
    "lidb": LiDBConfig(rank=1, a=40, b=30, basis_seed=3),
    "para": PaRaConfig(rank=3),
    "full": FullConfig(),
}
RULES = {"lora": "attention", "lidb": "attention and feed-forward", "para": "all linear and convolution"}


def link(family: str, loaded: Any, seed: int, text: bool = False) -> Adapter:
    """Return an adapter of random values, large enough to have a visible effect, as if trained."""
    shapes = layer_shapes(trainable_layers(loaded[0], loaded[1] if text else None))
    targets = select_targets(shapes, RULES.get(family, "attention"))
    if family == "para":
        targets = [target for target in targets if target.matrix_shape[0] > 8]
    made = Adapter.create(family, targets, CONFIGS[family], torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return made


def stack_of(families: tuple[str, ...], loaded: Any, text: bool = False) -> AdapterStack:
    return AdapterStack(tuple(link(family, loaded, i, text) for i, family in enumerate(families)), {"base": "SD15"})


def literal(adapter: AdapterStack, name: str, weight: Tensor, strength: float) -> Tensor:
    """Return ``W + s (W' - W)`` for every adapter of the stack in turn, by its paper's formula in float64."""
    weight = weight.double().flatten(1)
    for one in adapter.adapters:
        if name not in one.layers:
            continue
        a = one.layers[name]
        formula = {
            "lora": lambda a=a, w=weight: reference.lora(w, a.up, a.down, a.alpha),
            "lidb": lambda a=a, w=weight: reference.lidb(w, a.a_aux, a.a_train, a.b_train, a.b_aux.T),
            "para": lambda a=a, w=weight: reference.para(w, a.basis),
            "full": lambda a=a, w=weight: reference.full(w, a.diff),
        }[one.family]
        weight = weight + strength * (formula() - weight)
    return weight.detach()
