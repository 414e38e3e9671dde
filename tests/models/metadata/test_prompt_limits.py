"""However long and many its prompts are, an adapter can be saved and loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig, LoRAConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.models.files.adapter_header import encode_header
from hyperbooth.models.metadata.combine import combine_adapters
from hyperbooth.models.metadata.lora_metadata import lora_metadata
from hyperbooth.models.metadata.prompt_limits import LEFT_OUT, MAX_LENGTH, MAX_PROMPTS
from safetensors import safe_open

CJK = [f"{i} " + "犬" * 200 for i in range(2000)]


def adapter(prompts: list[str], family: str = "lora", **facts: Any) -> AdapterStack:
    config = LoRAConfig(rank=2, alpha=2.0) if family == "lora" else LiDBConfig()
    link = Adapter.create(family, [Target("diffusion_model.a", (12, 10))], config, torch.Generator().manual_seed(0))
    return AdapterStack((link,), {"base": "SD15", "prompts": prompts, **facts})


def saved(made: AdapterStack, path: Path) -> AdapterStack:
    save_adapter(made, path, metadata=lora_metadata(made, "dog", native=True))
    return load_adapter(path)


@pytest.mark.parametrize(
    ("prompts", "left_out"),
    [
        (CJK, 1980),
        (["a" * 50_000], 0),
        (['"\\\n' * 9_000] * 3, 0),
        ([f"{i} " + "dog " * 250 for i in range(1100)], 1080),
        (["a dog \ud800"], 0),
    ],
)
@pytest.mark.parametrize("family", ["lora", "lidb"])
def test_long_captions_can_be_saved_and_saved_again(
    tmp_path: Path, prompts: list[str], left_out: int, family: str
) -> None:
    made = adapter(prompts, family, class_prompt=prompts[0])
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    loaded = saved(made, first)
    assert made.metadata["prompts"] is prompts
    assert first.stat().st_size < 60_000 and all(len(prompt) <= MAX_LENGTH for prompt in loaded.metadata["prompts"])
    if family == "lora":
        assert loaded.metadata.get(LEFT_OUT, 0) == left_out and len(loaded.metadata["prompts"]) <= MAX_PROMPTS
    assert len(loaded.metadata["class_prompt"]) <= MAX_LENGTH
    saved(loaded, second)
    assert first.read_bytes() == second.read_bytes()


def test_short_prompts_are_unchanged(tmp_path: Path) -> None:
    prompts = ["a photo of sks dog", "eine Aufnahme von sks Hündchen", "x" * MAX_LENGTH]
    loaded = saved(adapter(prompts), tmp_path / "a.safetensors")
    assert loaded.metadata == {"base": "SD15", "prompts": prompts}


def test_combined_prompts_can_be_saved_and_counted(tmp_path: Path) -> None:
    """Adapters are combined before and after saving; parts do not repeat the prompts."""
    first, second = adapter(CJK), adapter(["a" * 50_000, *(f"b{i}" for i in range(40))], "lidb")
    both = combine_adapters(first, second)
    loaded = saved(both, tmp_path / "both.safetensors")
    assert len(loaded.metadata["prompts"]) == MAX_PROMPTS and loaded.metadata[LEFT_OUT] == 2041 - MAX_PROMPTS
    assert loaded.metadata["parts"] == [{"base": "SD15"}, {"base": "SD15"}]
    reloaded = [saved(one, tmp_path / f"{i}.safetensors") for i, one in enumerate((first, second))]
    again = saved(combine_adapters(*reloaded), tmp_path / "again.safetensors")
    assert len(again.metadata["prompts"]) == MAX_PROMPTS and again.metadata[LEFT_OUT] == 2041 - MAX_PROMPTS
    saved(again, tmp_path / "third.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "third.safetensors").read_bytes()


def test_other_programs_get_all_trigger_words_and_short_prompts(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(40)]
    saved(adapter(CJK, trigger=", ".join(words)), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        said = file.metadata()
    tags = list(json.loads(said["ss_tag_frequency"])["subject"])
    assert tags[:40] == words and len(tags) == 40 + MAX_PROMPTS and "犬" in said["ss_tag_frequency"]
    assert json.loads(said["ss_datasets"])[0]["subsets"][0]["class_tokens"] == ", ".join(words)


def test_the_header_is_written_in_the_letters_of_the_prompt() -> None:
    assert "犬" in encode_header(adapter(["犬"]))
