"""Relative change of each block, as shown in the chart of the Info node."""

import re

import pytest
import torch
from helpers import reference
from hyperbooth.models.adapters import FullConfig, LiDBConfig, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.metadata.summary import change_per_block, summary

SHAPES = {
    "diffusion_model.input_blocks.1.1.attn1.to_q": (16, 16),
    "diffusion_model.input_blocks.1.1.attn1.to_k": (16, 16),
    "diffusion_model.middle_block.1.conv": (16, 8, 3, 3),
    "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj": (16, 16),
}
BLOCKS = {"input_blocks.1": slice(0, 2), "middle_block": slice(2, 3), "layers.3": slice(3, 4)}


def weight_of(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(list(SHAPES).index(name))
    return torch.randn(SHAPES[name], generator=generator)


def chain(*families: str) -> AdapterStack:
    configs = {
        "lora": LoRAConfig(rank=2, alpha=3.0),
        "lidb": LiDBConfig(rank=1, a=6, b=5),
        "para": PaRaConfig(rank=2),
        "full": FullConfig(),
    }
    links = []
    for seed, family in enumerate(families):
        generator = torch.Generator().manual_seed(seed)
        targets = [Target(name, shape) for name, shape in SHAPES.items()]
        links.append(Adapter.create(family, targets, configs[family], generator))
        for parameter in links[-1].parameters():
            parameter.data.normal_(generator=generator)
    return AdapterStack(tuple(links))


def literal(adapter: AdapterStack, name: str) -> torch.Tensor:
    """Return the layer's change by the papers' formulas, in float64."""
    before = weight = weight_of(name).double().flatten(1)
    for link in adapter.adapters:
        a = link.layers[name]
        formulas = {
            "lora": lambda w, a=a: reference.lora(w, a.up, a.down, a.alpha),
            "lidb": lambda w, a=a: reference.lidb(w, a.a_aux, a.a_train, a.b_train, a.b_aux.T),
            "para": lambda w, a=a: reference.para(w, a.basis),
            "full": lambda w, a=a: reference.full(w, a.diff),
        }
        weight = formulas[link.family](weight)
    return (weight - before).detach()


@pytest.mark.parametrize("families", [("lora",), ("lidb",), ("para",), ("full",), ("para", "lora"), ("full", "para")])
def test_a_block_changes_by_the_mean_of_its_layers(families: tuple[str, ...]) -> None:
    adapter = chain(*families)
    relative = change_per_block(adapter, weight_of)
    assert list(relative) == list(BLOCKS)
    for block, place in BLOCKS.items():
        layers = list(SHAPES)[place]
        each = [(literal(adapter, name).norm() / weight_of(name).double().norm()).item() for name in layers]
        assert relative[block] == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_a_zero_weight_does_not_fail() -> None:
    changes = change_per_block(chain("lora"), lambda name: torch.zeros(SHAPES[name]))
    assert all(change > 0 for change in changes.values())


def test_on_square_layers_para_has_half_the_parameters_of_lora() -> None:
    square = {name: shape for name, shape in SHAPES.items() if len(shape) == 2}
    link = chain("para").select_layers(square).adapters[0]
    numbers = sum(parameter.numel() for parameter in link.parameters())
    assert numbers == 3 * 16 * 2
    text = summary(AdapterStack((link,)))
    assert re.search(rf"\b{numbers} parameters\b.*\bLoRA\b.*\b{2 * numbers}\b", text)
