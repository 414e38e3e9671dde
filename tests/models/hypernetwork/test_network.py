"""The hypernetwork: its recursion, its linear initialization, and which parameters it predicts."""

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
LAYOUT = ParameterLayout.of(Adapter.create("lidb", TARGETS, LiDBConfig(rank=1, a=7, b=5), torch.Generator()))
WIDTH = 6


def network(**settings: Any) -> HyperNetwork:
    settings = {"width": 16, "heads": 2, "directions": 3, **settings}
    made = HyperNetwork.create(HyperNetworkConfig(**settings), LAYOUT, WIDTH, torch.Generator().manual_seed(0))
    made.set_normalization(torch.arange(LAYOUT.parameter_count) / 10, torch.full((LAYOUT.parameter_count,), 0.5))
    return made


def features(batch: int = 4, tokens: int = 5) -> Tensor:
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(1))


def test_forward_is_the_recursion_of_the_paper() -> None:
    made, f = network(refinements=3), features()
    assert made(f).shape == (4, LAYOUT.parameter_count)
    z, projected = torch.zeros(4, LAYOUT.parameter_count), made.features(f)
    for _ in range(3):
        z = z + made._step(projected, z)
    assert torch.allclose(made(f), made.theta(z), atol=1e-6)
    assert 0 < (made(f) - made.mean).abs().mean() < 20 * HEAD_STD


def test_a_copy_with_fewer_refinements_has_the_same_steps() -> None:
    made, f = network(refinements=3), features()
    with torch.inference_mode():
        once = made.copy(1)
    step = made._step(made.features(f), torch.zeros(4, LAYOUT.parameter_count))
    assert once.config.refinements == 1 and torch.allclose(once(f), made.theta(step), atol=1e-6)
    once(f).sum().backward()
    assert made.heads.grad is None and not torch.equal(once(f), made(f))
    assert made.copy().config == made.config and torch.equal(made.copy()(f), made(f))


def test_a_step_decodes_tokens_and_applies_heads() -> None:
    """Compare a step with the same computation, written layer by layer."""
    made, f = network(), features()
    z = torch.randn(4, LAYOUT.parameter_count, generator=torch.Generator().manual_seed(2))
    layers = z.split([sum(t.numel() for t in tensors.values()) for tensors in LAYOUT.unflatten(z[0]).values()], 1)
    tokens = [n @ made.entry[i, : n.shape[1]] + made.position[i] for i, n in enumerate(layers)]
    decoded = made.decoder(torch.stack(tokens, 1), made.features(f))
    changes = [decoded[:, i] @ made.heads[i, :, : n.shape[1]] for i, n in enumerate(layers)]
    assert torch.allclose(made._step(made.features(f), z), torch.cat(changes, 1), atol=1e-5)


def test_the_initialization_is_linear_in_pooled_tokens() -> None:
    made, f = network(refinements=1), features()
    draw = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(2, 3 * WIDTH, generator=draw), torch.randn(2, generator=draw)
    directions = torch.randn(LAYOUT.parameter_count, 2, generator=draw)
    made.set_linear_init(weight, bias, directions)
    expected = torch.cat([f[:, 0], f.mean(1), f.std(1, unbiased=False)], 1) @ weight.mT + bias
    assert torch.allclose(made.theta(made.initial_z(f)), made.mean + 0.5 * expected @ directions.mT, atol=1e-4)
    assert pooled(torch.ones(1, 3, 2)).isfinite().all()
    with torch.no_grad():
        made.heads.zero_()
    assert torch.allclose(made(f), made.theta(made.initial_z(f)))
    assert not network(directions=0).initial_z(f).any()


def test_every_parameter_gets_a_gradient() -> None:
    made = network()
    made.set_linear_init(torch.ones(3, 3 * WIDTH), torch.ones(3), torch.ones(LAYOUT.parameter_count, 3))
    made(features()).square().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_learns_different_targets_for_different_images() -> None:
    made, f = network(directions=0), features(8)
    target = torch.randn(8, LAYOUT.parameter_count, generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(150):
        loss = (made.predict_z(f) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    swapped = (made.predict_z(f.roll(1, 0)) - target).square().mean()
    assert swapped > 1.5


def test_a_shared_factor_is_taken_from_the_mean() -> None:
    made = network(shared_input=True)
    parts, mean = LAYOUT.unflatten(made(features())), LAYOUT.unflatten(made.mean)
    for name, tensors in parts.items():
        assert torch.equal(tensors["b_train"], mean[name]["b_train"].expand_as(tensors["b_train"]))
        assert (tensors["a_train"] != mean[name]["a_train"]).any()


def test_a_learned_shared_factor_starts_at_the_mean_and_is_added_for_every_image() -> None:
    plain = network(shared_input=True)
    made = plain.copy(learnt_input=True)
    assert torch.equal(made(features()), plain(features())) and made.copy().config == made.config
    made(features()).square().sum().backward()
    assert made.input_side.grad.all()
    with torch.no_grad():
        made.input_side.copy_(torch.arange(len(made.input_side)))
    parts, before, start = LAYOUT.unflatten(made(features())), LAYOUT.unflatten(plain(features())), 0
    for name, tensors in parts.items():
        added = (tensors["b_train"] - before[name]["b_train"]).flatten(1)
        expected = torch.arange(start, start + added.shape[1]).float()
        assert torch.allclose(added, expected.expand_as(added), atol=1e-4)
        assert torch.equal(tensors["a_train"], before[name]["a_train"])
        start += added.shape[1]
    assert start == len(made.input_side)
    with pytest.raises(ValueError, match=r"learnt_input.*shared_input"):
        HyperNetworkConfig(learnt_input=True)


def test_a_shared_factor_is_not_predicted() -> None:
    made = network(shared_input=True)
    predicted = sum(tensors["a_train"].numel() for tensors in LAYOUT.unflatten(made.mean).values())
    assert made.guess.directions.shape == (predicted, 3) and made.predict_z(features()).shape == (4, predicted)


def test_a_parameter_with_scale_zero_stays_at_the_mean() -> None:
    made = network()
    scale = torch.ones(LAYOUT.parameter_count)
    scale[::2] = 0
    made.set_normalization(made.mean.clone(), scale)
    assert torch.equal(made(features())[:, ::2], made.mean[::2].expand(4, -1))


def test_initialization_draws_from_the_given_generator_only() -> None:
    before = torch.get_rng_state()
    first, second = network().state_dict(), network().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.get_rng_state())


def test_any_number_of_tokens_and_creation_under_inference_mode() -> None:
    with torch.inference_mode():
        made = network()
    assert not any(p.is_inference() for p in made.parameters())
    assert made(features(2, 1)).shape == made(features(2, 300)).shape
    assert "3 layers" in made.describe() and "4 refinements" in made.describe()


@pytest.mark.parametrize("settings", [{"width": 15}, {"refinements": 0}, {"depth": 0}, {"directions": -1}])
def test_invalid_sizes_are_refused(settings: dict[str, int]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"^{name} .*{value}\b"):
        network(**settings)
