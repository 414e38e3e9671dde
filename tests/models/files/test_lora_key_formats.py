"""Key formats of other tools write and read the same weight changes, on bare tensors."""

import pytest
import torch
from hyperbooth.models.adapters import LoRA, LoRAConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.lora_import import KeyNames, read_lora
from hyperbooth.models.files.lora_key_formats import (
    KEY_FORMATS,
    KOHYA,
    PEFT,
    KeyName,
    KeyTarget,
    as_plain_lora,
    format_keys,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

LAYER = "diffusion_model.a"


def link(shape: tuple[int, ...], rank: int = 2, alpha: float = 3.0, seed: int = 0, layer: str = LAYER) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    made = Adapter.create("lora", [Target(layer, shape)], LoRAConfig(rank=rank, alpha=alpha), generator)
    for parameter in made.parameters():
        parameter.data.normal_(generator=generator)
    return made


def read(tensors: dict[str, Tensor], places: dict[str, KeyTarget], shape: tuple[int, ...]) -> LoRA:
    again = read_lora("a.safetensors", tensors, {}, KeyNames(places, {LAYER: shape}, "SD15", True))
    return again.adapters[0].layers[LAYER]


@given(
    st.sampled_from(KEY_FORMATS), st.integers(1, 9), st.integers(1, 9), st.sampled_from([(), (1, 1), (3, 3)]),
    st.integers(1, 4), st.floats(0.01, 64), st.booleans(),
)  # fmt: skip
def test_every_key_format_round_trips(spelling, rows, columns, kernel, rank, alpha, swapped) -> None:
    shape = (2 * rows, columns, *kernel)
    rank = min(rank, *Target(LAYER, shape).matrix_shape)
    made, name = link(shape, rank, alpha), KeyName("x", KeyTarget(LAYER, swapped=swapped), spelling)
    again = read(format_keys(made, {LAYER: [name]}, "test"), {"x": name.target}, shape)
    torch.testing.assert_close(again.delta(), made.layers[LAYER].delta())
    assert again.rank == rank and torch.equal(again.down, made.layers[LAYER].down)
    assert again.alpha == pytest.approx(alpha if spelling.alpha and not swapped else rank)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.sampled_from([KOHYA, PEFT]), st.integers(1, 3))
def test_a_fused_layer_in_parts_round_trips_at_its_own_rank(counts, spelling, rank) -> None:
    rows = sum(counts)
    made = link((rows, 6), min(rank, rows))
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    names = [
        KeyName(f"part{i}", KeyTarget(LAYER, (first, count)), spelling)
        for i, (first, count) in enumerate(zip(firsts, counts, strict=True))
    ]
    tensors = format_keys(made, {LAYER: names}, "test")
    for name in names:
        assert len(tensors[name.stem + spelling.up]) == name.target.rows[1]
    again = read(tensors, {name.stem: name.target for name in names}, (rows, 6))
    torch.testing.assert_close(again.delta(), made.layers[LAYER].delta())
    assert again.rank == min(rank, rows)


@given(st.integers(1, 3), st.integers(1, 3))
def test_parts_with_downs_of_their_own_become_blocks(first_rank, second_rank) -> None:
    """Other trainers change q and v separately and k not at all: the rank is the sum."""
    q, v = link((4, 6), first_rank, layer="diffusion_model.q"), link((4, 6), second_rank, 1.0, 1, "diffusion_model.v")
    tensors = format_keys(q, {"diffusion_model.q": [KeyName("q", KeyTarget(LAYER), PEFT)]}, "test")
    tensors |= format_keys(v, {"diffusion_model.v": [KeyName("v", KeyTarget(LAYER), PEFT)]}, "test")
    again = read(tensors, {"q": KeyTarget(LAYER, (0, 4)), "v": KeyTarget(LAYER, (8, 4))}, (12, 6))
    expected = torch.zeros(12, 6)
    expected[:4], expected[8:] = q.layers["diffusion_model.q"].delta(), v.layers["diffusion_model.v"].delta()
    torch.testing.assert_close(again.delta(), expected)
    assert again.rank == again.alpha == first_rank + second_rank


def test_one_lora_keeps_its_alpha_and_a_stack_is_summed() -> None:
    one, two = link((5, 4)), link((5, 4), 3, 1.0, 1)
    assert as_plain_lora(AdapterStack((one,))) is one
    plain = as_plain_lora(AdapterStack((one, two))).layers[LAYER]
    assert plain.rank == plain.alpha == 5
    torch.testing.assert_close(plain.delta(), one.layers[LAYER].delta() + two.layers[LAYER].delta())


def test_a_layer_without_a_name_is_refused_unless_it_does_not_change() -> None:
    made = link((5, 4))
    with pytest.raises(ValueError, match=r"'kohya'.*\b1 .*diffusion_model\.a\b"):
        format_keys(made, {}, "kohya")
    made.layers[LAYER].up.data.zero_()
    assert format_keys(made, {}, "kohya") == {}


def test_layers_of_many_ranks_are_described_by_their_range() -> None:
    parts = [link((20, 20), rank, 4.0, layer=f"diffusion_model.{rank}") for rank in (8, 4, 16)]
    joined = Adapter(
        "lora",
        {name: adapter for part in parts for name, adapter in part.layers.items()},
        {name: target for part in parts for name, target in part.targets.items()},
    )
    assert joined.describe() == "lora (rank 4 to 16, alpha 4) on 3 layers"
