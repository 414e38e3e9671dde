"""The hypernetwork: its recursion, its start, what it predicts and what it leaves alone."""

from typing import Any

import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.hypernetwork.network import HEAD_STD, HyperNetwork, HyperNetworkConfig, pooled
from torch import Tensor

TARGETS = [
    Target("diffusion_model.a.to_q", (12, 9)), Target("diffusion_model.b.conv", (8, 3, 3, 3)),
    Target("diffusion_model.c.to_q", (4, 3)),
]  # fmt: skip
LAYOUT = ParameterLayout.of(Adapter.create("lidb", TARGETS, LiDBConfig(1, 7, 5), torch.Generator()))
WIDTH = 6


def network(**settings: Any) -> HyperNetwork:
    settings = {"width": 16, "heads": 2, "directions": 3, **settings}
    made = HyperNetwork.create(HyperNetworkConfig(**settings), LAYOUT, WIDTH, torch.Generator().manual_seed(0))
    made.standardise(torch.arange(LAYOUT.parameter_count) / 10, torch.full((LAYOUT.parameter_count,), 0.5))
    return made


def features(batch: int = 4, tokens: int = 5) -> Tensor:
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(1))


def test_it_is_the_papers_recursion() -> None:
    made, f = network(refinements=3), features()
    assert made(f).shape == (4, LAYOUT.parameter_count)
    z, projected = torch.zeros(4, LAYOUT.parameter_count), made.features(f)
    for _ in range(3):
        z = z + made._step(projected, z)
    assert torch.allclose(made(f), made.theta(z), atol=1e-6)
    assert 0 < (made(f) - made.mean).abs().mean() < 20 * HEAD_STD


def test_a_copy_that_refines_less_often_has_the_same_steps() -> None:
    made, f = network(refinements=3), features()
    with torch.inference_mode():
        once = made.copied(1)
    step = made._step(made.features(f), torch.zeros(4, LAYOUT.parameter_count))
    assert once.config.refinements == 1 and torch.allclose(once(f), made.theta(step), atol=1e-6)
    once(f).sum().backward()
    assert made.heads.grad is None and not torch.equal(once(f), made(f))
    assert made.copied().config == made.config and torch.equal(made.copied()(f), made(f))


def test_a_step_is_tokens_decoded_through_heads() -> None:
    """Layer by layer, by hand."""
    made, f = network(), features()
    z = torch.randn(4, LAYOUT.parameter_count, generator=torch.Generator().manual_seed(2))
    numbers = z.split([sum(t.numel() for t in tensors.values()) for tensors in LAYOUT.unflatten(z[0]).values()], 1)
    tokens = [n @ made.entry[i, : n.shape[1]] + made.position[i] for i, n in enumerate(numbers)]
    decoded = made.decoder(torch.stack(tokens, 1), made.features(f))
    changes = [decoded[:, i] @ made.heads[i, :, : n.shape[1]] for i, n in enumerate(numbers)]
    assert torch.allclose(made._step(made.features(f), z), torch.cat(changes, 1), atol=1e-5)


def test_the_start_is_the_linear_guess() -> None:
    made, f = network(refinements=1), features()
    draw = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(2, 3 * WIDTH, generator=draw), torch.randn(2, generator=draw)
    directions = torch.randn(LAYOUT.parameter_count, 2, generator=draw)
    made.begin(weight, bias, directions)
    expected = torch.cat([f[:, 0], f.mean(1), f.std(1, unbiased=False)], 1) @ weight.mT + bias
    assert torch.allclose(made.theta(made.guessed(f)), made.mean + 0.5 * expected @ directions.mT, atol=1e-4)
    assert pooled(torch.ones(1, 3, 2)).isfinite().all()
    with torch.no_grad():
        made.heads.zero_()
    assert torch.allclose(made(f), made.theta(made.guessed(f)))
    assert not network(directions=0).guessed(f).any()


def test_every_parameter_learns() -> None:
    made = network()
    made.begin(torch.ones(3, 3 * WIDTH), torch.ones(3), torch.ones(LAYOUT.parameter_count, 3))
    made(features()).square().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_tells_pictures_apart_and_learns_to() -> None:
    made, f = network(directions=0), features(8)
    target = torch.randn(8, LAYOUT.parameter_count, generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(150):
        loss = (made.standardised(f) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    swapped = (made.standardised(f.roll(1, 0)) - target).square().mean()
    assert swapped > 1.5


def test_a_shared_input_factor_is_the_means() -> None:
    made = network(shared_input=True)
    parts, mean = LAYOUT.unflatten(made(features())), LAYOUT.unflatten(made.mean)
    for name, tensors in parts.items():
        assert torch.equal(tensors["b_train"], mean[name]["b_train"].expand_as(tensors["b_train"]))
        assert (tensors["a_train"] != mean[name]["a_train"]).any()


def test_a_learnt_input_factor_starts_as_the_means_and_is_everybodys() -> None:
    plain = network(shared_input=True)
    made = plain.copied(learnt_input=True)
    assert torch.equal(made(features()), plain(features())) and made.copied().config == made.config
    made(features()).square().sum().backward()
    assert made.input_side.grad.all()
    with torch.no_grad():
        made.input_side.copy_(torch.arange(len(made.input_side)))
    parts, before, at = LAYOUT.unflatten(made(features())), LAYOUT.unflatten(plain(features())), 0
    for name, tensors in parts.items():
        added = (tensors["b_train"] - before[name]["b_train"]).flatten(1)
        expected = torch.arange(at, at + added.shape[1]).float()
        assert torch.allclose(added, expected.expand_as(added), atol=1e-4)
        assert torch.equal(tensors["a_train"], before[name]["a_train"])
        at += added.shape[1]
    assert at == len(made.input_side)
    with pytest.raises(ValueError, match="learnt_input is for a bank of people who share an input side"):
        HyperNetworkConfig(learnt_input=True)


def test_what_is_shared_takes_no_place() -> None:
    made = network(shared_input=True)
    predicted = sum(tensors["a_train"].numel() for tensors in LAYOUT.unflatten(made.mean).values())
    assert made.guess.directions.shape == (predicted, 3) and made.standardised(features()).shape == (4, predicted)


def test_a_number_without_scale_stays_at_the_mean() -> None:
    made = network()
    scale = torch.ones(LAYOUT.parameter_count)
    scale[::2] = 0
    made.standardise(made.mean.clone(), scale)
    assert torch.equal(made(features())[:, ::2], made.mean[::2].expand(4, -1))


def test_same_generator_same_network_and_the_global_one_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, second = network().state_dict(), network().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.get_rng_state())


def test_any_number_of_tokens_and_under_inference_mode() -> None:
    with torch.inference_mode():
        made = network()
    assert not any(p.is_inference() for p in made.parameters())
    assert made(features(2, 1)).shape == made(features(2, 300)).shape
    assert "3 layers" in made.describe() and "4 refinements" in made.describe()


@pytest.mark.parametrize("settings", [{"width": 15}, {"refinements": 0}, {"depth": 0}, {"directions": -1}])
def test_settings_that_make_no_network_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give"):
        network(**settings)
