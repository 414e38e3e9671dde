"""One table of checks that every family passes, on every kind of layer, in every precision."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import reference
from helpers.stack_subjects import stack_subjects, unstack_subjects
from hyperbooth.models.adapters import (  # fmt: skip
    FAMILIES,
    AdapterLayer,
    FullConfig,
    LiDBConfig,
    LoRA,
    LoRAConfig,
    PaRaConfig,
)
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.per_sample import batched_adapter
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.adapters.weight_update import total_delta
from hyperbooth.models.backbone.frozen_layers import frozen
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.trainers.engine.optimizers import OPTIMIZERS
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    name: str
    config: Any
    formula: Callable[[AdapterLayer, Tensor], Tensor]
    """Adapter and weight -> changed weight, float64, from the paper."""

    @property
    def low_rank(self) -> bool:
        return self.name != "full"


def _lidb(a: AdapterLayer, w: Tensor) -> Tensor:
    return reference.lidb(w, a.a_aux, a.a_train, a.b_train, a.b_aux.T)


TABLE = [
    Family("lora", LoRAConfig(rank=4, alpha=4.0), lambda a, w: reference.lora(w, a.up, a.down, a.alpha)),
    Family("lora", LoRAConfig(rank=3, alpha=12.0), lambda a, w: reference.lora(w, a.up, a.down, a.alpha)),
    Family("lidb", LiDBConfig(), _lidb),
    Family("lidb", LiDBConfig(rank=2, a=10, b=5, basis_seed=7), _lidb),
    Family("para", PaRaConfig(rank=4, init="random"), lambda a, w: reference.para(w, a.basis)),
    Family("para", PaRaConfig(rank=1, init="random"), lambda a, w: reference.para(w, a.basis)),
    Family("para", PaRaConfig(rank=3, init="smallest singular"), lambda a, w: reference.para(w, a.basis)),
    Family("full", FullConfig(), lambda a, w: reference.full(w, a.diff)),
]
LOW_RANK = [family for family in TABLE if family.low_rank]


@dataclass(frozen=True)
class Layer:
    name: str
    make: Callable[[], nn.Module]
    input: tuple[int, ...]
    """Shape of the input, the batch of 3 first."""

    def apply(self, weight: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
        """Return what the layer computes with another weight ``[out, in]``, in float64."""
        bias = None if layer.bias is None else layer.bias.detach().double()
        if isinstance(layer, nn.Linear):
            return F.linear(x.double(), weight, bias)
        kernel = weight.view(layer.weight.shape)
        return F.conv2d(x.double(), kernel, bias, layer.stride, layer.padding, layer.dilation)


LAYERS = [
    Layer("linear", lambda: nn.Linear(20, 24), (3, 5, 20)),
    Layer("unbiased", lambda: nn.Linear(20, 24, bias=False), (3, 20)),
    Layer("1x1", lambda: nn.Conv2d(6, 24, 1), (3, 6, 7, 5)),
    Layer("3x3", lambda: nn.Conv2d(6, 24, 3, padding=1), (3, 6, 7, 5)),
    Layer("3x2 strided", lambda: nn.Conv2d(6, 24, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)), (3, 6, 9, 8)),
]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}

by_family = pytest.mark.parametrize("family", TABLE, ids=lambda f: f"{f.name}-{f.config}")
by_low_rank = pytest.mark.parametrize("family", LOW_RANK, ids=lambda f: f"{f.name}-{f.config}")
by_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
by_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda d: str(d).removeprefix("torch."))


@dataclass(frozen=True)
class Case:
    """A layer of the model, with an adapter of a family for it."""

    kind: Layer
    module: nn.Module
    link: Adapter
    x: Tensor

    @property
    def adapter(self) -> AdapterLayer:
        return self.link.layers["l"]

    @property
    def set(self) -> AdapterStack:
        return AdapterStack((self.link,))

    @property
    def weight(self) -> Tensor:
        return self.module.weight.detach().flatten(1)

    def output(self, adapter: AdapterStack | None = None) -> Tensor:
        with (adapter or self.set).injected({"l": self.module}):
            return self.module(self.x)


def case(family: Family, layer: Layer, dtype: torch.dtype = torch.float32, trained: bool = True, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = layer.make().to(dtype).requires_grad_(False)
    weight = module.weight.detach()
    link = Adapter.create(
        family.name, [Target("l", tuple(weight.shape))], family.config, generator, lambda _: weight.float().flatten(1)
    )
    if trained:
        with torch.no_grad():
            for parameter in link.parameters():
                parameter.normal_(generator=generator)
    return Case(layer, module, link, torch.randn(layer.input, generator=generator).to(dtype))


def distance(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_table_covers_every_family() -> None:
    assert {row.name for row in TABLE} == set(FAMILIES)


@by_family
@by_layer
@by_dtype
def test_the_layer_computes_with_the_papers_weight(family: Family, layer: Layer, dtype: torch.dtype) -> None:
    made = case(family, layer, dtype)
    with torch.no_grad():
        y = made.output()
    expected = layer.apply(family.formula(made.adapter, made.weight), made.module, made.x)
    assert y.dtype == dtype
    assert distance(y, expected) < TOLERANCE[dtype]


@by_family
@by_layer
@by_dtype
def test_merged_equals_attached(family: Family, layer: Layer, dtype: torch.dtype) -> None:
    made = case(family, layer, dtype)
    with torch.no_grad():
        y = made.output()
        weight = made.weight.float()
        merged = weight + total_delta(made.set.weight_updates()["l"], weight)
    assert distance(y, layer.apply(merged.double(), made.module, made.x)) < TOLERANCE[dtype]


@by_family
@by_layer
def test_all_but_para_start_as_the_identity(family: Family, layer: Layer) -> None:
    made = case(family, layer, trained=False)
    same = torch.equal(made.output(), made.module(made.x))
    assert same == (family.name != "para") == bool((made.adapter.delta(made.weight) == 0).all())


@by_family
@by_layer
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_of_an_optimizer_is_seen(family: Family, layer: Layer, name: str) -> None:
    """What is computed once for each value of a parameter is computed anew."""
    made = case(family, layer)
    optimizer = OPTIMIZERS[name]([{"params": made.link.parameters(), "lr": 0.1 if name != "sgd" else 1e-5}])
    with frozen(made.module), made.set.injected({"l": made.module}):
        for _ in range(2):
            optimizer.zero_grad()
            made.module(made.x).square().sum().backward()
            optimizer.step()
            expected = layer.apply(family.formula(made.adapter, made.weight), made.module, made.x)
            assert distance(made.module(made.x), expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("family", [row for row in TABLE if row.name in ("lora", "lidb")], ids=lambda f: f.name)
@pytest.mark.parametrize("trains", [True, False])
def test_what_does_not_train_is_worked_out_once(
    family: Family, trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Without training, an update is computed once per precision; a new attachment uses the current values."""
    made = case(family, LAYERS[0])
    for parameter in made.link.parameters():
        parameter.requires_grad_(trains)
    expected, steps, step = made.output(), [], type(made.adapter).weight_update
    monkeypatch.setattr(type(made.adapter), "weight_update", lambda self: (steps.append(1), step(self))[1])
    with made.set.injected({"l": made.module}):
        assert all(torch.equal(made.module(made.x), expected) for _ in range(3))
        made.module.bfloat16()
        assert distance(made.module(made.x.bfloat16()), expected) < TOLERANCE[torch.bfloat16]
        made.module.float()
    assert len(steps) == (4 if trains else 2)
    with torch.no_grad():
        made.link.parameters()[0].mul_(-1)
    assert distance(made.output(), expected) > 0.1


@by_family
@by_layer
@by_dtype
def test_strength_zero_changes_nothing(family: Family, layer: Layer, dtype: torch.dtype) -> None:
    made = case(family, layer, dtype)
    weight = made.weight.float()
    assert not total_delta(made.set.weight_updates()["l"], weight, 0.0).any()


@by_family
@by_layer
@by_dtype
def test_gradients_are_finite_and_the_adapters_only(family: Family, layer: Layer, dtype: torch.dtype) -> None:
    made = case(family, layer, dtype)
    x = made.x.clone().requires_grad_()
    with frozen(made.module), made.set.injected({"l": made.module}):
        made.module(x).float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in made.link.parameters())
    assert all(p.grad is None for p in made.module.parameters())
    assert torch.isfinite(x.grad).all()


@by_family
@by_layer
@pytest.mark.parametrize("modified_in_place", [(), ("l",)], ids=["left alone", "modified in place"])
def test_gradients_are_those_through_the_papers_formula(
    family: Family, layer: Layer, modified_in_place: tuple[str, ...]
) -> None:
    """Compare the gradients of the adapter and of the input with autograd on the float64 formula."""
    made = case(family, layer)
    x = made.x.clone().requires_grad_()
    with frozen(made.module), made.set.injected({"l": made.module}, modified_in_place=modified_in_place):
        y = made.module(x)
        loss = (y.clone() if modified_in_place else y).square().sum()
        if modified_in_place:
            y += 1
        loss.backward()
    attached = [parameter.grad.clone() for parameter in made.link.parameters()]
    made.adapter.zero_grad()
    again = made.x.double().requires_grad_()
    layer.apply(family.formula(made.adapter, made.weight), made.module, again).square().sum().backward()
    assert distance(x.grad, again.grad) < 2e-5
    for gradient, parameter in zip(attached, made.link.parameters(), strict=True):
        assert distance(gradient, parameter.grad) < 2e-5


@by_family
@by_layer
@by_dtype
def test_the_layer_is_as_before(family: Family, layer: Layer, dtype: torch.dtype) -> None:
    made = case(family, layer, dtype)
    before = {name: tensor.clone() for name, tensor in made.module.state_dict().items()}
    plain = made.module(made.x)
    with pytest.raises(RuntimeError, match="in the middle"), made.set.injected({"l": made.module}):
        made.module(made.x).sum().backward()
        raise RuntimeError("in the middle")
    made.output()
    assert "forward" not in vars(made.module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.module.state_dict().items())
    assert torch.equal(made.module(made.x), plain)


@by_family
@by_layer
def test_the_global_random_state_is_left_alone(family: Family, layer: Layer, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    made = case(family, layer)
    made.output().sum().backward()
    save_adapter(made.set, tmp_path / "a.safetensors")
    load_adapter(tmp_path / "a.safetensors")
    assert torch.equal(before, torch.get_rng_state())


@by_family
@by_layer
def test_same_generator_same_adapter(family: Family, layer: Layer) -> None:
    first, again, other = (case(family, layer, trained=False, seed=seed).link.parameters() for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    if family.name == "full" or family.config == PaRaConfig(rank=3, init="smallest singular"):
        return
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@by_family
@by_layer
@by_dtype
def test_saved_loaded_and_saved_the_bytes_are_the_same(
    family: Family, layer: Layer, dtype: torch.dtype, tmp_path: Path
) -> None:
    made = case(family, layer)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_adapter(made.set, first, dtype)
    loaded = load_adapter(first)
    save_adapter(loaded, second, dtype)
    assert first.read_bytes() == second.read_bytes()
    ours, theirs = made.adapter.to_tensors(), loaded.adapters[0].layers["l"].to_tensors()
    assert tuple(ours) == made.adapter.tensor_names
    assert all(torch.equal(ours[name].to(dtype).float(), theirs[name].to(dtype).float()) for name in ours)


@by_low_rank
@by_layer
def test_the_export_is_the_same_change(family: Family, layer: Layer) -> None:
    made = case(family, layer)
    up, down = made.set.as_lora(lambda _: made.module.weight)["l"]
    plain = LoRA(up, down, alpha=up.shape[-1])
    expected = family.formula(made.adapter, made.weight)
    assert distance(made.weight + plain.delta(), expected) < 2e-6


@by_low_rank
@by_layer
@by_dtype
def test_subjects_in_one_batch_equal_one_after_another(family: Family, layer: Layer, dtype: torch.dtype) -> None:
    """Compare outputs and gradients, where each sample of the batch has an adapter of its own."""
    made = [case(family, layer, dtype, seed=seed) for seed in range(3)]
    module, x = made[0].module, made[0].x
    link = stack_subjects([one.link for one in made])
    with frozen(module), AdapterStack((link,)).injected({"l": module}):
        together = module(x)
        together.float().square().mul(1e-3).sum().backward()
    for i, one in enumerate(made):
        with frozen(module), one.set.injected({"l": module}):
            alone = module(x[i : i + 1])
            alone.float().square().mul(1e-3).sum().backward()
        assert distance(together[i : i + 1], alone) < TOLERANCE[dtype]
        for stack, parameter in zip(link.parameters(), one.link.parameters(), strict=True):
            assert distance(stack.grad[i], parameter.grad) < 10 * TOLERANCE[dtype]
    for one, again in zip(made, unstack_subjects(link), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.link.parameters(), again.parameters(), strict=True))


@by_layer
@by_dtype
def test_subjects_that_share_their_input_side_are_as_with_one_each(layer: Layer, dtype: torch.dtype) -> None:
    """Compare outputs, and the gradients of the subjects' own factors and of the shared one."""
    (family,) = (row for row in TABLE if row.config == LiDBConfig(rank=2, a=10, b=5, basis_seed=7))
    made = [case(family, layer, dtype, seed=seed) for seed in range(3)]
    for one in made[1:]:
        one.adapter.b_train.data.copy_(made[0].adapter.b_train.data)
    module, x, whole = made[0].module, made[0].x, stack_subjects([one.link for one in made])
    layout = ParameterLayout.of(made[0].link)
    shared, outputs = batched_adapter(layout, layout.pack(whole), True, train_shared_down=True), []
    for link in (shared, whole):
        with frozen(module), AdapterStack((link,)).injected({"l": module}):
            outputs.append(module(x))
            outputs[-1].float().square().mul(1e-3).sum().backward()
    assert distance(*outputs) < TOLERANCE[dtype]
    assert distance(shared.layers["l"].a_train.grad, whole.layers["l"].a_train.grad) < 10 * TOLERANCE[dtype]
    everybodys = whole.layers["l"].b_train.grad.sum(0)
    assert distance(shared.layers["l"].b_train.grad, everybodys) < 10 * TOLERANCE[dtype]
    without = batched_adapter(layout, layout.pack(whole), True).layers["l"]
    assert without.a_train.requires_grad and not without.b_train.requires_grad


@by_low_rank
def test_a_batch_of_another_size_than_the_subjects_is_refused(family: Family) -> None:
    made = [case(family, LAYERS[0], seed=seed) for seed in range(2)]
    adapter = AdapterStack((stack_subjects([one.link for one in made]),))
    with pytest.raises(ValueError, match=r"\b3 samples\b.*\b2 subjects\b"):
        made[0].output(adapter)


def test_subjects_of_other_kinds_are_not_put_side_by_side() -> None:
    links = [case(family, LAYERS[0]).link for family in TABLE[:2]]
    with pytest.raises(ValueError, match=r"rank 4, alpha 4.*rank 3, alpha 12"):
        stack_subjects(links)
    with pytest.raises(ValueError, match="no adapters"):
        stack_subjects([])
    seeds = [Family("lidb", LiDBConfig(basis_seed=10_000_000 + i), _lidb) for i in range(2)]
    with pytest.raises(ValueError, match=r"basis seed 10000000\b.*basis seed 10000001\b"):
        stack_subjects([case(family, LAYERS[0]).link for family in seeds])


@by_family
def test_describes_itself(family: Family) -> None:
    described = case(family, LAYERS[0]).link.describe()
    assert described.startswith(family.name) and ("rank" in described) == family.low_rank
    assert not family.low_rank or f"rank {family.config.rank}" in described


SENSELESS = [
    (lambda: LoRAConfig(rank=0, alpha=1.0), "rank", "0"),
    (lambda: LoRAConfig(rank=-1, alpha=1.0), "rank", "-1"),
    (lambda: LoRAConfig(rank=4, alpha=0.0), "alpha", "0.0"),
    (lambda: LoRAConfig(rank=4, alpha=float("nan")), "alpha", "nan"),
    (lambda: LoRAConfig(rank=4, alpha=float("inf")), "alpha", "inf"),
    (lambda: LiDBConfig(rank=0), "rank", "0"),
    (lambda: LiDBConfig(rank=1, a=0), "a", "0"),
    (lambda: LiDBConfig(rank=1, a=100, b=-2), "b", "-2"),
    (lambda: LiDBConfig(rank=1, a=100, b=50, basis_seed=-1), "basis_seed", "-1"),
    (lambda: PaRaConfig(rank=0), "rank", "0"),
    (lambda: PaRaConfig(rank=4, init="zero"), "init", "'zero'.*'random'.*'smallest singular'"),
]


@pytest.mark.parametrize(("make", "name", "value"), SENSELESS)
def test_senseless_settings_are_refused(make: Callable[[], Any], name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} .*{value}"):
        make()


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("lora", LoRAConfig(rank=4, alpha=4.0), r"\blayer l\b.*\brank 4\b.*\b3 x 20\b.*\b3\b"),
        ("para", PaRaConfig(rank=3), r"\blayer l\b.*\brank 3\b.*\b3 x 20\b.*\b1\b"),
    ],
)
def test_a_rank_larger_than_the_layer_is_refused(family: str, config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adapter.create(family, [Target("l", (3, 20))], config, torch.Generator())
