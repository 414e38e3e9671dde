"""The error of a plain LoRA at other strengths, against dense matrices in float64."""

import itertools
from collections import Counter

import pytest
import torch
from helpers import reference
from hyperbooth.models.adapters import AdapterLayer, FullConfig, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.strength_error import USES, StrengthError, is_nonlinear
from hyperbooth.models.adapters.targets import Target
from torch import Tensor

TARGETS = [Target("diffusion_model.a", (24, 16)), Target("diffusion_model.b", (12, 20))]
CONFIGS = {"lora": LoRAConfig(rank=3, alpha=2.0), "para": PaRaConfig(rank=2), "full": FullConfig()}
STACKS = [families for count in (1, 2, 3) for families in itertools.product(CONFIGS, repeat=count)]


def stack(families: tuple[str, ...]) -> AdapterStack:
    generator = torch.Generator().manual_seed(5)
    adapters = []
    for index, family in enumerate(families):
        adapter = Adapter.create(family, TARGETS[: 1 + index % 2], CONFIGS[family], generator)
        for parameter in adapter.parameters():
            parameter.data.normal_(generator=generator)
        adapters.append(adapter)
    return AdapterStack(tuple(adapters))


def weight(name: str) -> Tensor:
    rows, columns = {target.name: target.shape for target in TARGETS}[name]
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(len(name) + rows))


def change(adapter: AdapterStack, strength: float) -> Tensor:
    """The change of all weights, every step's taken by the strength, as the patches of Apply Adapter are."""
    flat = []
    for name in sorted(adapter.targets()):
        before = now = weight(name).double()
        for one in adapter.adapters:
            if name in one.layers:
                now = now + strength * step(one.layers[name], now)
        flat.append((now - before).flatten())
    return torch.cat(flat)


def step(layer: AdapterLayer, now: Tensor) -> Tensor:
    """``W_i - W_(i-1)`` by the papers' formulas."""
    tensors = list(layer.to_tensors().values())
    formula = {"lora": reference.lora, "para": reference.para, "full": reference.full}[layer.family]
    return formula(now, *tensors) - now


@pytest.mark.parametrize("families", STACKS, ids=", ".join)
@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
def test_error_is_that_of_dense_matrices(families: tuple[str, ...], strength: float) -> None:
    adapter, asked = stack(families), Counter[str]()

    def counted(name: str) -> Tensor:
        asked[name] += 1
        return weight(name)

    measured = StrengthError(adapter, counted, strength)
    for name in adapter.targets():
        if "para" in families:
            assert measured(name).equal(weight(name))
    found = measured.relative()
    exact = stack(families)
    saved = change(exact, strength)
    for use in USES:
        expected = change(exact, use * strength)
        error = ((use * saved - expected).norm() / expected.norm()).item()
        assert found[use] == pytest.approx(error, abs=2e-6)
        if not is_nonlinear(exact):
            assert error < 1e-12
    assert not asked or set(asked.values()) == {1}


def test_only_a_para_after_another_adapter_is_nonlinear() -> None:
    nonlinear = {families for families in STACKS if is_nonlinear(stack(families))}
    assert ("lora", "full", "lora") not in nonlinear and ("para", "lora") not in nonlinear
    assert {("lora", "para"), ("para", "para"), ("full", "para"), ("para", "lora", "para")} <= nonlinear
