"""Damaged files of this pack in the stock loaders are reported, and never taken for another program's."""

import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig, LoRAConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import adapter_tensors
from hyperbooth.models.files.comfyui_keys import parts_by_layer
from hyperbooth.models.files.packing import LAYOUT, PACKED
from hyperbooth.models.textual_inversion.embeddings import LearnedEmbedding
from torch import Tensor

LAYER = Target("diffusion_model.a", (12, 10))
FOREIGN = "lora_unet_a.lora_up.weight"


def tensors_of(*families: str, word: bool = False) -> dict[str, Tensor]:
    configs = {"lidb": LiDBConfig(), "lora": LoRAConfig(rank=2, alpha=2.0)}
    links = [Adapter.create(family, [LAYER], configs[family], torch.Generator()) for family in families]
    words = (LearnedEmbedding("sks", {"clip_l": torch.ones(1, 4)}),) if word else ()
    return adapter_tensors(AdapterStack(tuple(links), {}, words))


@pytest.mark.parametrize("lost", [PACKED, LAYOUT])
@pytest.mark.parametrize("word", [False, True])
def test_a_packed_adapter_without_one_tensor_is_refused(lost: str, word: bool) -> None:
    tensors = tensors_of("lidb", word=word)
    assert list(parts_by_layer(tensors)) == [LAYER.name]
    del tensors[lost]
    with pytest.raises(ValueError, match=rf"\badapter file\b.*\b{lost}\b"):
        parts_by_layer(tensors)


@pytest.mark.parametrize("lost", [PACKED, LAYOUT])
def test_a_packed_adapter_of_a_stack_without_one_tensor_is_refused(lost: str) -> None:
    tensors = tensors_of("lora", "lidb")
    del tensors[f"2/{lost}"]
    with pytest.raises(ValueError, match=rf"\badapter file\b.*\b2/{lost}\b"):
        parts_by_layer(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({LAYOUT: torch.ones(30, dtype=torch.uint8)}, "layout.*Error -3"),
        ({LAYOUT: torch.ones(3)}, r"layout.*torch\.float32"),
        ({PACKED: torch.ones(7)}, r"packed.*\(7,\)"),
    ],
)
def test_errors_name_the_adapter_file(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=rf"\badapter file\b.*{message}"):
        parts_by_layer({**tensors_of("lidb"), **change})


@pytest.mark.parametrize("name", [PACKED, LAYOUT])
def test_another_programs_tensor_of_that_name_is_ignored(name: str) -> None:
    assert parts_by_layer({name: torch.ones(3), FOREIGN: torch.ones(12, 2)}) == {}
