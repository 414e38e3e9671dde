"""The metadata of a file, parsed as the programs that read it do."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hyperbooth.models.adapters import FullConfig, LiDBConfig, LoRA, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import save_adapter
from hyperbooth.models.files.safetensors_io import with_hash
from hyperbooth.models.metadata.lora_metadata import BASES, lora_metadata, parse_lora_metadata
from hyperbooth.models.textual_inversion.embeddings import LearnedEmbedding
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

FACTS: dict[str, Any] = {
    "base": "SD15", "prediction": "eps", "latent_cell": 8, "steps": 400, "batch_size": 2, "seed": 7,
    "learning_rate": 1e-4, "text_encoder_lr": 5e-5, "images": 4, "class_images": 20, "prompts": ["a photo of sks dog"],
    "optimizer": "adamw", "lr_scheduler": "cosine", "loss_weighting": "min_snr", "min_snr_gamma": 5.0,
    "warmup_steps": 10, "gradient_accumulation": 3, "gradient_checkpointing": True, "max_grad_norm": 1.0,
    "prior_weight": 1.0, "noise_offset": 0.05, "caption_dropout": 0.1,
    "precision": "bfloat16", "latent_sizes": {"64x64": 3, "48x80": 1}, "started": 1.7e9,
    "finished": 1.7e9 + 60, "trigger": "sks dog, sks",
}  # fmt: skip


CONFIGS = {
    "lora": LoRAConfig(rank=2, alpha=1.5),
    "lidb": LiDBConfig(),
    "para": PaRaConfig(rank=2),
    "full": FullConfig(),
}


def adapter(facts: dict[str, Any] = FACTS, rank: int = 2, kernel: tuple[int, ...] = (3, 3)) -> AdapterStack:
    targets = [Target("diffusion_model.a", (12, 10)), Target("diffusion_model.b", (12, 3, *kernel))]
    return AdapterStack((Adapter.create("lora", targets, LoRAConfig(rank=rank, alpha=1.5), torch.Generator()),), facts)


def header(folder: Path, made: AdapterStack) -> dict[str, str]:
    """Return the metadata of a saved file as every program reads it."""
    from hyperbooth.models.files.adapter_file import adapter_tensors

    path = folder / "dog.safetensors"
    save_adapter(made, path, metadata=with_hash(lora_metadata(made, "dog"), adapter_tensors(made)))
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_lora_manager_finds_base_triggers_and_hash(tmp_path: Path) -> None:
    """LoRA Manager takes the base from ``ss_base_model_version``, the first folder's most frequent tags, and AutoV3."""
    said = header(tmp_path, adapter())
    assert "sd_1.5" in said["ss_base_model_version"].lower()
    tags = next(iter(json.loads(said["ss_tag_frequency"]).values()))
    assert sorted(tags, key=tags.get, reverse=True)[:3] == ["sks dog", "sks", "a photo of sks dog"]
    assert json.loads(said["ss_datasets"])[0]["subsets"][0]["class_tokens"] == "sks dog, sks"
    assert said["sshs_model_hash"] == tensor_hash(tmp_path / "dog.safetensors")


def tensor_hash(path: Path) -> str:
    """Return AutoV3 by kohya's and A1111's definition: sha256 of the file after its header."""
    data = path.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


@pytest.mark.parametrize(("base", "version"), [("SD15", "SD1"), ("SD20", "SD2"), ("SDXL", "SDXL")])
def test_automatic1111_finds_version_name_and_sizes(tmp_path: Path, base: str, version: str) -> None:
    said = header(tmp_path, adapter({**FACTS, "base": base}))
    found = "SD1"
    if said["ss_base_model_version"].startswith("sdxl_"):
        found = "SDXL"
    elif said["ss_v2"] == "True":
        found = "SD2"
    assert found == version
    assert said["ss_output_name"] == "dog" and said["ss_network_module"] == "networks.lora"
    parsed = {name: json.loads(value) for name, value in said.items() if value[:1] == "{"}
    sizes = {tuple(b["resolution"]): b["count"] for b in parsed["ss_bucket_info"]["buckets"].values()}
    assert sizes == {(512, 512): 3, (384, 640): 1}
    assert sum(folder["img_count"] for folder in parsed["ss_dataset_dirs"].values()) == 4


def test_kohyas_tools_find_network_and_training(tmp_path: Path) -> None:
    said = header(tmp_path, adapter())
    assert (int(said["ss_network_dim"]), float(said["ss_network_alpha"])) == (2, 1.5)
    assert json.loads(said["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "1.5"}
    numbers = {
        "ss_learning_rate": 1e-4, "ss_unet_lr": 1e-4, "ss_text_encoder_lr": 5e-5, "ss_seed": 7, "ss_steps": 400,
        "ss_max_train_steps": 400, "ss_num_train_images": 4, "ss_num_reg_images": 20, "ss_batch_size_per_device": 2,
        "ss_total_batch_size": 6, "ss_gradient_accumulation_steps": 3, "ss_lr_warmup_steps": 10,
        "ss_max_grad_norm": 1, "ss_prior_loss_weight": 1, "ss_min_snr_gamma": 5,
        "ss_noise_offset": 0.05, "ss_caption_dropout_rate": 0.1, "ss_training_started_at": 1.7e9,
        "ss_training_finished_at": 1.7e9 + 60,
    }  # fmt: skip
    assert {name: float(said[name]) for name in numbers} == numbers
    texts = {
        "ss_optimizer": "adamw", "ss_lr_scheduler": "cosine", "ss_loss_type": "l2", "ss_mixed_precision": "bf16",
        "ss_gradient_checkpointing": "True", "ss_resolution": "(512, 512)", "ss_enable_bucket": "True",
    }  # fmt: skip
    assert {name: said[name] for name in texts} == texts


@pytest.mark.parametrize("base", BASES)
def test_model_spec_is_complete(tmp_path: Path, base: str) -> None:
    said = header(tmp_path, adapter({**FACTS, "base": base}))
    spec = {name.removeprefix("modelspec."): value for name, value in said.items() if name.startswith("modelspec.")}
    assert spec == {
        "sai_model_spec": "1.0.1", "architecture": f"{BASES[base][1]}/lora", "implementation": BASES[base][2],
        "title": "dog", "trigger_phrase": "sks dog, sks", "prediction_type": "epsilon", "resolution": "512x512",
        "date": "2023-11-14T22:14:20+00:00",
    }  # fmt: skip
    assert parse_lora_metadata(said) == {"base": base, "steps": 400, "trigger": "sks dog, sks"}


def test_unknown_entries_are_omitted(tmp_path: Path) -> None:
    said = header(tmp_path, adapter({}, kernel=(1, 1)))
    assert said.keys() == {
        "hyperbooth", "hyperbooth_digest",
        "sshs_model_hash", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
        "ss_output_name", "modelspec.sai_model_spec", "modelspec.architecture",
        "modelspec.implementation", "modelspec.title",
    }  # fmt: skip
    assert said["ss_network_args"] == "{}"


def test_a_family_without_a_rank_has_no_network_entry() -> None:
    class Whole(LoRA):
        def settings(self) -> dict[str, float]:
            return {}

    target = Target("diffusion_model.a", (4, 4))
    link = Adapter("whole", {target.name: Whole(torch.ones(4, 1), torch.ones(1, 4), 1.0)}, {target.name: target})
    assert not any("network" in name for name in lora_metadata(AdapterStack((link,), FACTS), "dog"))


def test_the_rank_of_a_stack_is_that_of_its_sum() -> None:
    made = AdapterStack(adapter().adapters + adapter(rank=3).adapters, FACTS)
    said = lora_metadata(made, "dog")
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "5"
    (some,) = adapter(rank=3).select_prefix("diffusion_model.a").adapters
    assert lora_metadata(AdapterStack((*adapter().adapters, some)), "dog")["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize(
    ("families", "architecture"),
    [
        (["lora"], "lora"),
        (["lidb"], "hyperbooth-lidb"),
        (["para"], "hyperbooth-para"),
        (["full"], "hyperbooth-full"),
        (["lora", "lora"], "hyperbooth-lora"),
        (["lora", "para", "lora"], "hyperbooth-lora-para"),
    ],
)
def test_the_native_format_is_a_lora_only_if_other_programs_can_read_it(families: list[str], architecture: str) -> None:
    """Entries on base and triggers are the same for all; an export is a LoRA, whatever stack it was made of."""
    targets = [Target("diffusion_model.a", (12, 10))]
    links = [Adapter.create(f, targets, CONFIGS[f], torch.Generator()) for f in families]
    made = AdapterStack(tuple(links), FACTS)
    said = lora_metadata(made, "dog", native=True)
    assert said["modelspec.architecture"] == f"stable-diffusion-v1/{architecture}"
    assert any("ss_network" in name for name in said) == (architecture == "lora")
    assert (said["ss_base_model_version"], said["modelspec.trigger_phrase"]) == ("sd_1.5", "sks dog, sks")
    assert list(json.loads(said["ss_tag_frequency"])["subject"])[:2] == ["sks dog", "sks"]
    exported = lora_metadata(made, "dog")
    assert exported["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert exported.get("ss_network_module") == (None if families == ["full"] else "networks.lora")


def test_learned_embeddings_are_an_embedding_only_in_an_embedding_file() -> None:
    made = AdapterStack((), FACTS, (LearnedEmbedding("sks", {"clip_l": torch.ones(1, 4)}),))
    assert lora_metadata(made, "dog")["modelspec.architecture"].endswith("/textual-inversion")
    assert lora_metadata(made, "dog", native=True)["modelspec.architecture"].endswith("/hyperbooth-textual-inversion")


@given(st.sets(st.sampled_from(sorted(FACTS)), max_size=8), st.text(max_size=12), st.text(max_size=12))
def test_all_values_are_strings_whatever_is_missing(dropped, trigger, prompt) -> None:
    facts = {name: value for name, value in FACTS.items() if name not in dropped}
    said = lora_metadata(adapter({**facts, "trigger": trigger, "prompts": [prompt]}), "dog")
    assert all(isinstance(value, str) for value in said.values())
    assert said["ss_network_dim"] == "2"


def test_the_hash_is_of_the_tensors_alone(tmp_path: Path) -> None:
    save_adapter(adapter(), tmp_path / "a.safetensors", metadata={"ss_x": "1"})
    tensors = load_file(tmp_path / "a.safetensors")
    for metadata in ({}, {"ss_note": "dog"}, {"other": "entry" * 50}):
        assert with_hash(metadata, tensors) == {
            **metadata, "sshs_model_hash": tensor_hash(tmp_path / "a.safetensors"),
        }  # fmt: skip
