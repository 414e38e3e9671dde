"""Adapters that add a low rank each: fused into one bypass in training, applied one by one otherwise."""

import pytest
import torch
from helpers.stack_subjects import stack_subjects
from hyperbooth.models.adapters import LiDBConfig, LoRAConfig, PaRaConfig, fused
from hyperbooth.models.adapters.fused import FusedLowRank, fused_groups
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from torch import Tensor, nn

LAYERS = {"linear": nn.Linear(12, 9), "conv": nn.Conv2d(6, 8, 3, stride=2, padding=1)}
CONFIGS = {
    "lora": LoRAConfig(rank=3, alpha=6.0),
    "lidb": LiDBConfig(rank=2, a=5, b=4),
    "para": PaRaConfig(rank=2, init="random"),
}


def link(family: str, seed: int, names: tuple[str, ...] = ("linear", "conv")) -> Adapter:
    """Return an adapter whose parameters are all nonzero."""
    draw = torch.Generator().manual_seed(seed)
    targets = [Target(name, tuple(LAYERS[name].weight.shape)) for name in names]
    made = Adapter.create(family, targets, CONFIGS[family], draw)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) / 4
    return made


def one_after_the_other(links: list[Adapter], name: str, x: Tensor) -> Tensor:
    """Return the output of the layer with ``W + sum of up_i down_i``, written out."""
    layer = LAYERS[name]
    weight = layer.weight + sum(
        link.layers[name].delta().reshape(layer.weight.shape) for link in links if name in link.layers
    )  # fmt: skip
    return torch.func.functional_call(layer, {"weight": weight, "bias": layer.bias}, x)


def inputs(name: str) -> Tensor:
    shape = (5, 12) if name == "linear" else (2, 6, 7, 7)
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), requires_grad=True)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("families", [("lora", "lidb"), ("lidb", "lora"), ("lidb", "lora", "lora")])
@pytest.mark.parametrize("still", [0, 1], ids=["all train", "the last trains"])
def test_output_and_gradients_are_those_of_the_sum(name: str, families: tuple[str, ...], still: int) -> None:
    links = [link(family, seed) for seed, family in enumerate(families)]
    for parameter in [p for frozen in links[:-1] for p in frozen.parameters()] if still else ():
        parameter.requires_grad_(False)
    x, trained = inputs(name), [p for link in links for p in link.layers[name].parameters() if p.requires_grad]
    wanted = one_after_the_other(links, name, x)
    with AdapterStack(tuple(links)).injected(LAYERS):
        found = LAYERS[name](x)
        assert isinstance(next(iter(fused_groups([one.layers for one in links])))[name], FusedLowRank)
        for mine, theirs in zip(*(torch.autograd.grad(y.square().sum(), [x, *trained]) for y in (found, wanted)),
                                strict=True):  # fmt: skip
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, wanted)


def test_without_gradients_each_bit_is_that_of_the_links_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    links, layers = [link("lidb", 0), link("lora", 1)], LAYERS

    def outputs() -> list[Tensor]:
        with AdapterStack(tuple(links)).injected(layers), torch.no_grad():
            return [layer(inputs(name)) for name, layer in layers.items()]

    found = outputs()
    monkeypatch.setattr("hyperbooth.models.adapters.stack.fused_groups", lambda links: iter(links))
    assert all(map(torch.equal, found, outputs()))


def test_each_layer_has_its_own_links() -> None:
    links = [link("lora", 0), link("lidb", 1, ("conv",))]
    (joint,) = fused_groups([one.layers for one in links])
    assert joint["linear"] is links[0].layers["linear"]
    assert [*joint["conv"].layers] == [one.layers["conv"] for one in links]


@pytest.mark.parametrize(
    "ranks, trains, passes_needed",
    [((4, 8), (False, True), 1), ((4, 1), (False, True), 1), ((64, 4), (False, True), 2), ((64, 64), (False, True), 1),
     ((64, 4), (True, True), 1), ((4, 8), (False, False), 2)],
)  # fmt: skip
def test_frozen_factors_join_where_their_gradients_are_few_and_something_trains(
    ranks: tuple[int, int], trains: tuple[bool, bool], passes_needed: int
) -> None:
    """Autograd computes the gradients of all factors that are fused."""
    pairs = [
        (torch.zeros(9, rank, requires_grad=train), torch.zeros(rank, 12, requires_grad=train))
        for rank, train in zip(ranks, trains, strict=True)
    ]
    assert len(fused._fuse(pairs)) == passes_needed


def test_what_depends_on_the_weight_or_is_of_several_subjects_stands_alone() -> None:
    three = [link("lora", 0).layers, link("para", 1).layers, link("lidb", 2).layers]
    assert [*fused_groups(three)] == three
    several = stack_subjects([link("lidb", 0), link("lidb", 1)]).layers
    assert [*fused_groups([several, three[0]])] == [several, three[0]]
    assert [*fused_groups([])] == []
