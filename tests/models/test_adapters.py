"""One table of checks that every family passes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from hyperbooth.models.adapters import FAMILIES, Adapter, FullConfig, LoRA, LoRAConfig
from hyperbooth.models.attach import attached
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    name: str
    config: Any
    formula: Callable[[Adapter, Tensor], Tensor]
    """Adapter and weight -> changed weight, float64, from the paper."""


TABLE = [
    Family("lora", LoRAConfig(4, 4.0), lambda a, w: reference.lora(w, a.up, a.down, a.alpha)),
    Family("lora", LoRAConfig(3, 12.0), lambda a, w: reference.lora(w, a.up, a.down, a.alpha)),
    Family("full", FullConfig(), lambda a, w: reference.full(w, a.diff)),
]

pytestmark = pytest.mark.parametrize("family", TABLE, ids=lambda f: f"{f.name}-{f.config}")
SHAPE = (24, 20)


def made(family: Family, shape: tuple[int, int] = SHAPE, seed: int = 0) -> Adapter:
    return FAMILIES[family.name].create(shape, family.config, torch.Generator().manual_seed(seed))


def trained(family: Family, shape: tuple[int, int] = SHAPE) -> Adapter:
    """An adapter whose every parameter is random, as after training."""
    adapter = made(family, shape)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return adapter


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-4)


def test_table_covers_every_family(family: Family) -> None:
    assert {row.name for row in TABLE} == set(FAMILIES)


def test_starts_as_it_says(family: Family) -> None:
    weight = torch.randn(SHAPE)
    adapter = made(family)
    assert adapter.starts_as_identity == bool((adapter.delta(weight) == 0).all())


def test_delta_is_the_papers(family: Family) -> None:
    weight = torch.randn(SHAPE)
    adapter = trained(family)
    close(weight + adapter.delta(weight), family.formula(adapter, weight))


def test_same_generator_same_adapter(family: Family) -> None:
    first, again, other = made(family, seed=3), made(family, seed=3), made(family, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    drawn = any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert drawn == any(p.detach().any() for p in first.parameters())


def test_creation_leaves_the_global_random_state(family: Family) -> None:
    before = torch.get_rng_state()
    made(family)
    assert torch.equal(before, torch.get_rng_state())


def test_tensors_come_back_bit_for_bit(family: Family) -> None:
    adapter = trained(family)
    again = type(adapter).from_tensors(adapter.to_tensors())
    assert tuple(adapter.to_tensors()) == adapter.tensor_names
    assert torch.equal(adapter.delta(torch.eye(*SHAPE)), again.delta(torch.eye(*SHAPE)))


def test_attached_linear_equals_the_changed_weight(family: Family) -> None:
    layer = nn.Linear(20, 24)
    adapter, x = trained(family), torch.randn(2, 5, 20)
    with torch.no_grad(), attached({"a": adapter}, {"a": layer}):
        y = layer(x)
    close(y, F.linear(x.double(), family.formula(adapter, layer.weight), layer.bias.double()))


@pytest.mark.parametrize("geometry", [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2}])
def test_attached_convolution_equals_the_changed_weight(family: Family, geometry: dict[str, int]) -> None:
    layer = nn.Conv2d(6, 24, 3, **geometry)
    adapter, x = trained(family, (24, 6 * 9)), torch.randn(2, 6, 9, 9)
    changed = family.formula(adapter, layer.weight.flatten(1)).view(24, 6, 3, 3)
    with torch.no_grad(), attached({"a": adapter}, {"a": layer}):
        y = layer(x)
    close(y, F.conv2d(x.double(), changed, layer.bias.double(), **geometry))


def test_gradient_equals_the_changed_weights(family: Family) -> None:
    layer, adapter, x = nn.Linear(20, 24), trained(family), torch.randn(3, 20)
    with attached({"a": adapter}, {"a": layer}):
        layer(x).square().sum().backward()
    beside = [parameter.grad.clone() for parameter in adapter.parameters()]
    adapter.zero_grad()
    F.linear(x, layer.weight.detach() + adapter.delta(layer.weight.detach()), layer.bias).square().sum().backward()
    for a, parameter in zip(beside, adapter.parameters(), strict=True):
        torch.testing.assert_close(a, parameter.grad, rtol=1e-4, atol=1e-4)


def test_layer_is_restored_after_an_error(family: Family) -> None:
    layer = nn.Linear(20, 24)
    with pytest.raises(RuntimeError), attached({"a": trained(family)}, {"a": layer}):
        raise RuntimeError
    assert "forward" not in vars(layer)


def test_works_in_half_precision(family: Family) -> None:
    layer, adapter = nn.Linear(20, 24).bfloat16(), trained(family)
    with torch.no_grad(), attached({"a": adapter}, {"a": layer}):
        assert layer(torch.randn(3, 20).bfloat16()).dtype == torch.bfloat16


def test_describes_itself(family: Family) -> None:
    assert str(getattr(family.config, "rank", "every number")) in made(family).describe()


def test_rank_larger_than_the_layer_is_refused(family: Family) -> None:
    with pytest.raises(ValueError, match=r"rank 4 is larger than a layer of 3 x 20.*at most 3"):
        LoRA.create((3, 20), LoRAConfig(4, 4.0), torch.Generator())


@pytest.mark.parametrize("values", [(0, 1.0), (-1, 1.0), (4, 0.0), (4, float("nan")), (4, float("inf"))])
def test_senseless_settings_are_refused(family: Family, values: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match=r"rank is|alpha is"):
        LoRAConfig(*values)
