"""The rank that PaRa removes is compared with the recommended bound."""

import re

import torch
from helpers.reports import figures
from hyperbooth.models.adapters import LiDBConfig, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.metadata.summary import removal_warning, removed_rank, summary

NARROW, WIDE = Target("diffusion_model.narrow", (120, 40)), Target("diffusion_model.wide", (400, 10, 2, 2))

WARNING = "warning: "


def link(family: str, config: object, *targets: Target) -> Adapter:
    return Adapter.create(family, list(targets), config, torch.Generator())


def test_ranks_of_a_stack_add_up_by_layer() -> None:
    first, second = (link("para", PaRaConfig(rank=rank), NARROW, WIDE) for rank in (3, 2))
    lora = link("lora", LoRAConfig(rank=20, alpha=20.0), NARROW)
    chain = AdapterStack((first, lora, second, link("para", PaRaConfig(rank=1), WIDE)))
    assert removed_rank(chain) == {NARROW.name: 5, WIDE.name: 6}


def test_up_to_a_fortieth_there_is_no_warning() -> None:
    """3 of 120 and 10 of 400 are exactly a fortieth; LoRA removes nothing."""
    alone = link("para", PaRaConfig(rank=3), NARROW)
    chain = AdapterStack(
        (alone, link("para", PaRaConfig(rank=10), WIDE), link("lora", LoRAConfig(rank=30, alpha=30.0), NARROW))
    )
    beyond = AdapterStack((link("para", PaRaConfig(rank=4), NARROW),))
    assert [removal_warning(one) is None for one in (chain, beyond)] == [True, False]
    assert [WARNING in summary(one) for one in (chain, beyond)] == [False, True]


def test_beyond_a_fortieth_the_worst_layer_is_named() -> None:
    chain = AdapterStack((link("para", PaRaConfig(rank=8), NARROW, WIDE), link("para", PaRaConfig(rank=3), WIDE)))
    warning = removal_warning(chain)
    assert re.search(r"\b8\b.*\b120\b.*\bdiffusion_model\.narrow\b.*\b2 layers\b", warning)
    assert f"{WARNING}{warning}" in summary(chain)


def test_size_is_compared_with_a_lora() -> None:
    """PaRa needs half the parameters of LoRA on a square layer."""
    square = Target("diffusion_model.square", (64, 64))
    sizes = {
        family: figures(link(family, config, square).describe_size())
        for family, config in {"para": PaRaConfig(rank=4), "lidb": LiDBConfig(), "lora": LoRAConfig(rank=4)}.items()
    }
    assert sizes == {"para": ["256", "1.0", "512"], "lidb": ["114", "0.4", "128"], "lora": ["512", "2.0"]}
