"""Parameter layouts: theta and adapters round-trip, gradients pass, and mismatches are refused."""

import json
import re
from typing import Any

import pytest
import torch
from helpers.stack_subjects import stack_subjects, unstack_subjects
from hyperbooth.models.adapters import LiDBConfig, LoRAConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.per_sample import batched_adapter
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.backbone.frozen_layers import frozen
from hyperbooth.models.files.layout_json import layout_from_json, layout_to_json
from torch import nn

TARGETS = [Target("diffusion_model.a.to_q", (12, 9)), Target("diffusion_model.b.conv", (8, 3, 3, 3))]
CONFIG = LiDBConfig(rank=2, a=7, b=5, basis_seed=3)
NUMBERS = 2 * (7 + 5) + 2 * (7 + 5)


def link(seed: int = 0, config: Any = CONFIG, family: str = "lidb", targets: Any = TARGETS) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    made = Adapter.create(family, targets, config, generator)
    for parameter in made.parameters():
        parameter.data.normal_(generator=generator)
    return made


def same(first: Adapter, second: Adapter) -> bool:
    return first.targets == second.targets and all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_a_link_comes_back_from_its_numbers() -> None:
    made = link()
    layout = ParameterLayout.of(made)
    theta = layout.pack(made)
    assert theta.shape == (layout.parameter_count,) == (NUMBERS,)
    assert theta[:14].equal(made.layers[TARGETS[0].name].a_train.detach().flatten())
    assert same(layout.unpack(theta), made)


def test_subjects_are_rows() -> None:
    made = [link(seed) for seed in range(3)]
    layout = ParameterLayout.of(made[0])
    thetas = layout.pack(stack_subjects(made))
    assert thetas.equal(torch.stack([layout.pack(one) for one in made]))
    for one, again in zip(made, unstack_subjects(layout.unpack(thetas)), strict=True):
        assert same(one, again)


def test_putting_numbers_in_place_equals_a_new_link() -> None:
    layout = ParameterLayout.of(link())
    thetas = torch.randn(2, NUMBERS, generator=torch.Generator().manual_seed(1))
    kept = layout.unpack(torch.zeros(2, NUMBERS))
    before = kept.parameters()
    layout.assign(thetas, kept)
    assert same(kept, layout.unpack(thetas)) and all(a is b for a, b in zip(before, kept.parameters(), strict=True))


def test_subjects_that_share_their_input_side_are_rows_as_well() -> None:
    """All share one down factor without a gradient; it is packed, assigned and read like any other."""
    layout = ParameterLayout.of(link())
    thetas = torch.randn(3, NUMBERS, generator=torch.Generator().manual_seed(1))
    whole = layout.unpack(thetas)
    for adapter in whole.layers.values():
        adapter.b_train.data.copy_(adapter.b_train.data[:1].clone())
    thetas = layout.pack(whole)
    made = batched_adapter(layout, thetas, True)
    for adapter in made.layers.values():
        assert adapter.a_train.ndim == 3 and adapter.a_train.requires_grad
        assert adapter.b_train.ndim == 2 and not adapter.b_train.requires_grad
    assert layout.pack(made).equal(thetas)
    layout.assign(thetas.roll(1, 0), made)
    assert layout.pack(made).equal(thetas.roll(1, 0))
    for adapter in made.layers.values():
        adapter.a_train.grad = torch.ones_like(adapter.a_train)
    gradient = layout.unflatten(layout.gradient(made))
    assert all(parts["a_train"].eq(1).all() and parts["b_train"].eq(0).all() for parts in gradient.values())
    apart = batched_adapter(layout, thetas, False)
    assert same(apart, whole) and all(parameter.requires_grad for parameter in apart.parameters())


def test_a_learned_shared_down_factor_has_the_gradient_of_all_subjects() -> None:
    layout, name = ParameterLayout.of(link()), TARGETS[0].name
    theta = torch.randn(3, NUMBERS, generator=torch.Generator().manual_seed(1))
    for tensors in layout.unflatten(theta).values():
        tensors["b_train"].copy_(tensors["b_train"][:1].clone())
    layer, x, found = nn.Linear(9, 12), torch.randn(3, 9, generator=torch.Generator().manual_seed(2)), []
    for made in (batched_adapter(layout, theta, True, train_shared_down=True), layout.unpack(theta)):
        with frozen(layer), AdapterStack((made,)).select_layers([name]).injected({name: layer}):
            layer(x).square().sum().backward()
        found.append(layout.gradient(made))
    together, apart = found
    assert torch.allclose(together.sum(0), apart.sum(0), atol=1e-5)
    ours, theirs = (layout.unflatten(gradient)[name]["a_train"] for gradient in found)
    assert torch.allclose(ours, theirs, atol=1e-6) and theirs.abs().sum() > 0
    assert layout.unflatten(apart)[name]["b_train"].abs().sum() > 0


def test_the_links_gradient_is_thetas() -> None:
    """Compare an adapter's own parameters and :meth:`ParameterLayout.gradient` with autograd through ``parts``."""
    layout = ParameterLayout.of(link())
    theta = torch.randn(2, NUMBERS, generator=torch.Generator().manual_seed(1), requires_grad=True)
    made, x = layout.unpack(theta), torch.randn(2, 9, generator=torch.Generator().manual_seed(2))
    layer, name = nn.Linear(9, 12), TARGETS[0].name
    with frozen(layer), AdapterStack((made,)).select_layers([name]).injected({name: layer}):
        layer(x).square().sum().backward()
    theta.backward(layout.gradient(made))
    reached = theta.grad.clone()

    theta.grad = None
    adapter, parts = made.layers[name], layout.unflatten(theta)[name]
    up, down = adapter.a_aux @ parts["a_train"], parts["b_train"] @ adapter.b_aux.mT
    (layer(x) + (up @ (down @ x[..., None])).squeeze(-1)).square().sum().backward()
    assert torch.allclose(reached, theta.grad, atol=1e-5) and reached[:, :24].norm() > 0
    assert not reached[:, 24:].any()


def test_parts_joined_are_theta() -> None:
    layout, theta = ParameterLayout.of(link()), torch.arange(2.0 * NUMBERS).view(2, NUMBERS)
    assert layout.flatten(layout.unflatten(theta)).equal(theta)


def test_a_layout_survives_json() -> None:
    layout = ParameterLayout.of(link())
    again = layout_from_json(json.loads(json.dumps(layout_to_json(layout))))
    again.check()
    assert again == layout and again.first_difference(layout) is None
    assert layout.describe() == "lidb of 48 parameters on 2 layers, basis seed 3"


OTHERS = [
    (link(config=LiDBConfig(rank=2, a=7, b=5, basis_seed=4)), r"\bseed 3\b.*\ba bank\b.*\bseed 4\b.*\ba network\b"),
    (link(config=LiDBConfig(rank=2, a=5, b=7, basis_seed=3)), r"\(7, 2\).*\(5, 2\)"),
    (link(targets=TARGETS[::-1]), r"\ba\.to_q\b.*\ba bank\b.*\bb\.conv\b.*\ba network\b"),
    (link(targets=TARGETS[:1]), "48 parameters on 2 layers.*24 parameters on 1 layers"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS)
def test_other_layouts_are_told_apart(other: Adapter, message: str) -> None:
    ours = ParameterLayout.of(link())
    ours.check_compatible(ParameterLayout.of(link(7)), "a bank", "a network")
    with pytest.raises(ValueError, match=message):
        ours.check_compatible(ParameterLayout.of(other), "a bank", "a network")


@pytest.mark.parametrize("other", [other for other, _ in OTHERS if list(other.targets) != list(link().targets)[::-1]])
def test_another_layouts_link_is_not_packed(other: Adapter) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(other.describe())}.*{re.escape(link().describe())}"):
        ParameterLayout.of(link()).pack(other)


def test_the_order_is_the_layouts_own() -> None:
    layout = ParameterLayout.of(link())
    theta = layout.pack(link())
    turned = Adapter("lidb", dict(reversed(link().layers.items())), dict(reversed(link().targets.items())))
    assert layout.pack(turned).equal(theta)


def test_other_bases_under_the_same_seed_are_told_apart() -> None:
    ours = ParameterLayout.of(link())
    said = json.loads(json.dumps(layout_to_json(ours)))
    said["facts"]["probes"]["out 12 7"][0] += 0.1
    with pytest.raises(ValueError, match=r"\bseed 3\b.*\bout 12 7\b"):
        ours.check_compatible(layout_from_json(said), "a bank", "a network")
    with pytest.raises(ValueError, match=r"\bseed 3\b.*\bout 12 7\b"):
        layout_from_json(said).check()


def test_what_is_not_packed_has_no_layout() -> None:
    with pytest.raises(ValueError, match=r"'lora'.*\blidb\b"):
        ParameterLayout.of(link(config=LoRAConfig(rank=2, alpha=2.0), family="lora"))


@pytest.mark.parametrize("shape", [(), (NUMBERS - 1,), (NUMBERS, 2)])
def test_other_numbers_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(str(shape))}.*\b{NUMBERS}\b"):
        ParameterLayout.of(link()).unpack(torch.zeros(shape))


def test_a_strangers_layout_takes_no_memory() -> None:
    """A terabyte claimed by fifty bytes is refused for what it is, not by the allocator."""
    said = json.loads(json.dumps(layout_to_json(ParameterLayout.of(link()))))
    said["kinds"][0][1:] = [[7, 2**40], [2**40, 5]]
    layout = layout_from_json(said)
    layout.check()
    with pytest.raises(ValueError, match=rf"\({NUMBERS},\).*\b{layout.parameter_count}\b"):
        layout.unpack(torch.zeros(NUMBERS))
