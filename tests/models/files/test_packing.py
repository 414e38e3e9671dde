"""Packed adapters are small and exact, and refused if damaged."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hyperbooth.models.adapters import FAMILIES, FullConfig, LiDBConfig, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import adapter_tensors, cast_for_file, load_adapter, save_adapter
from hyperbooth.models.files.family_codecs import LAYER_CODECS, PACKED_CODECS
from hyperbooth.models.files.packing import LAYOUT, MAX_LAYOUT_BYTES, PACKED, pack_adapter, unpack_adapter
from hyperbooth.models.files.precision_loss import adapter_precision_loss, tensor_precision_loss
from hyperbooth.models.files.safetensors_io import with_hash
from hyperbooth.models.metadata.lora_metadata import lora_metadata
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

SMALL = [Target("diffusion_model.a.to_q", (120, 60)), Target("diffusion_model.b.conv", (24, 3, 3, 3))]
FACTS: dict[str, Any] = {
    "base": "SD15", "prediction": "eps", "precision": "float16", "latent_cell": 8, "steps": 1000, "batch_size": 1,
    "seed": 123456789012345, "learning_rate": 0.005, "text_encoder_lr": 0.005, "targets": "attention", "images": 5,
    "class_images": 100, "prompts": ["a photo of sks dog"], "class_prompt": "a photo of a dog", "optimizer": "adamw",
    "lr_scheduler": "cosine", "loss_weighting": "min_snr", "min_snr_gamma": 5.0, "noise_sampling": "uniform",
    "noise_offset": 0.0, "prior_mode": "class images", "prior_weight": 1.0, "caption_dropout": 0.05,
    "warmup_steps": 100, "gradient_accumulation": 4, "max_grad_norm": 1.0, "gradient_checkpointing": False,
    "latent_sizes": {"64x64": 2, "72x56": 2, "56x72": 1}, "final_loss": 0.12345678901234567,
    "started": 1763700000.1234567, "finished": 1763703600.7654321, "trigger": "sks dog",
}  # fmt: skip
"""The complete metadata of a training run."""


def sd15() -> list[Target]:
    """Return LiDB's layers of SD1.5: q, k, v, out of 32 attentions, and 6 of each of CLIP's 12 layers."""
    places = {f"input_blocks.{i}.1": size for i, size in ((1, 320), (2, 320), (4, 640), (5, 640), (7, 1280), (8, 1280))}
    places |= {"middle_block.1": 1280}
    places |= {f"output_blocks.{i}.1": 1280 // 2 ** (i // 3 - 1) for i in range(3, 12)}
    targets = []
    for place, size in places.items():
        for attention, context in (("attn1", size), ("attn2", 768)):
            for layer, columns in (("to_q", size), ("to_k", context), ("to_v", context), ("to_out.0", size)):
                name = f"diffusion_model.{place}.transformer_blocks.0.{attention}.{layer}"
                targets.append(Target(name, (size, columns)))
    for i in range(12):
        layer = f"text_encoders.clip_l.transformer.text_model.encoder.layers.{i}"
        targets += [Target(f"{layer}.self_attn.{name}_proj", (768, 768)) for name in ("q", "k", "v", "out")]
        targets += [Target(f"{layer}.mlp.fc1", (3072, 768)), Target(f"{layer}.mlp.fc2", (768, 3072))]
    return targets


PAPER = LiDBConfig()


def lidb(targets: list[Target], config: Any = PAPER, family: str = "lidb") -> Adapter:
    generator = torch.Generator().manual_seed(0)
    link = Adapter.create(family, targets, config, generator)
    for parameter in link.parameters():
        parameter.data.normal_(generator=generator)
    return link


def numbers(link: Adapter) -> dict[tuple[str, str], Tensor]:
    return {(name, key): t for name, one in link.layers.items() for key, t in one.to_tensors().items()}


def assert_same(ours: Adapter, theirs: Adapter) -> None:
    assert theirs.targets == ours.targets and list(theirs.targets) == list(ours.targets)
    assert theirs.describe() == ours.describe()
    assert all(torch.equal(t, numbers(theirs)[key]) for key, t in numbers(ours).items())


@pytest.mark.parametrize("letter", ["", "d", "犬"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 125_000), (torch.float16, 65_000)])
def test_a_file_of_sd15_is_as_small_as_in_the_paper(tmp_path: Path, dtype: torch.dtype, most: int, letter: str) -> None:
    """Count the bytes of 200 layers, 30,000 parameters and all metadata, with a short prompt or 100 long captions."""
    link = lidb(sd15())
    assert len(link.targets) == 200 and sum(p.numel() for p in link.parameters()) == 30_000
    captions = {"prompts": [f"{i} sks dog " + letter * 400 for i in range(100)]} if letter else {}
    adapter, path = AdapterStack((link,), {**FACTS, **captions}), tmp_path / "dog.safetensors"
    entries = with_hash(
        lora_metadata(adapter, "hyperbooth", native=True), cast_for_file(adapter_tensors(adapter), dtype)
    )
    save_adapter(adapter, path, dtype, entries)
    assert path.stat().st_size <= most
    tensors = load_file(path)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {PACKED: dtype, LAYOUT: torch.uint8}
    assert len(tensors[PACKED]) == 30_000


@pytest.mark.parametrize(
    "config",
    [LiDBConfig(), LiDBConfig(rank=3, a=7, b=5, basis_seed=2**64 - 1), LiDBConfig(rank=40, a=500, b=500, basis_seed=3)],
)
def test_save_load_save_gives_the_same_bytes(tmp_path: Path, config: LiDBConfig) -> None:
    link = lidb(SMALL, config)
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_adapter(AdapterStack((link,), {"steps": 3}), first)
    again = load_adapter(first)
    assert_same(link, again.adapters[0])
    save_adapter(again, second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_layers_with_bases_smaller_than_the_checksum_round_trip(tmp_path: Path, shape: tuple[int, int]) -> None:
    link = lidb([Target("diffusion_model.a", shape), *SMALL], LiDBConfig(rank=1, a=1, b=1))
    save_adapter(AdapterStack((link,)), tmp_path / "a.safetensors")
    assert_same(link, load_adapter(tmp_path / "a.safetensors").adapters[0])


def test_half_precision_rounds_once(tmp_path: Path) -> None:
    link, path = lidb(SMALL), tmp_path / "a.safetensors"
    save_adapter(AdapterStack((link,)), path, torch.float16)
    found = numbers(load_adapter(path).adapters[0])
    assert all(torch.equal(found[key], tensor.half().float()) for key, tensor in numbers(link).items())
    before = path.read_bytes()
    save_adapter(load_adapter(path), path, torch.float16)
    assert path.read_bytes() == before


def test_each_adapter_of_a_stack_is_packed_by_itself(tmp_path: Path) -> None:
    first, second = lidb(SMALL), lidb(SMALL[:1], LiDBConfig(rank=2, basis_seed=1))
    plain = lidb(SMALL, LoRAConfig(rank=2, alpha=2.0), "lora")
    save_adapter(AdapterStack((first, plain, second)), tmp_path / "a.safetensors")
    names = load_file(tmp_path / "a.safetensors").keys()
    assert {"1/packed", "1/layout", "3/packed", "3/layout", "2/diffusion_model.a.to_q.alpha"} <= names
    assert len(names) == 10
    for ours, theirs in zip((first, plain, second), load_adapter(tmp_path / "a.safetensors").adapters, strict=True):
        assert_same(ours, theirs)


def test_the_header_does_not_repeat_the_layers(tmp_path: Path) -> None:
    save_adapter(AdapterStack((lidb(SMALL),)), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = json.loads(file.metadata()["hyperbooth"])
    assert header["chain"] == [{"family": "lidb"}]


def test_layers_of_one_adapter_may_differ() -> None:
    """An adapter merged from others has layers of different settings."""
    link = Adapter("lidb", {**lidb(SMALL[:1]).layers, **lidb(SMALL[1:], LiDBConfig(rank=2, a=9, b=4)).layers},
                {target.name: target for target in SMALL})  # fmt: skip
    assert_same(link, unpack_adapter(pack_adapter(link)))


def layout(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(zlib.compress(text)), dtype=torch.uint8)


def edited(change: Any) -> dict[str, Tensor]:
    """Return a packed adapter whose layout or values were modified by ``change``."""
    tensors = pack_adapter(lidb(SMALL))
    said = json.loads(zlib.decompress(tensors[LAYOUT].numpy().tobytes()))
    numbers = [tensors[PACKED]]
    change(said, numbers)
    return {PACKED: numbers[0], LAYOUT: layout(json.dumps(said).encode())}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "packed.*layout"),
        ({PACKED: torch.ones(3)}, "lacks layout"),
        ({PACKED: torch.ones(3), LAYOUT: torch.ones(3)}, r"layout.*torch\.float32"),
        ({PACKED: torch.ones(3), LAYOUT: torch.ones(3, 3, dtype=torch.uint8)}, r"layout.*torch\.uint8.*\(3, 3\)"),
        ({PACKED: torch.ones(3), LAYOUT: torch.ones(30, dtype=torch.uint8)}, "layout.*Error -3"),
        ({PACKED: torch.ones(3), LAYOUT: layout(b" " * (MAX_LAYOUT_BYTES + 1))}, rf"layout.*\b{MAX_LAYOUT_BYTES}\b"),
        ({PACKED: torch.ones(3), LAYOUT: layout(b"[" * 10**5)}, r"layout.*\bdeep\b"),
        ({PACKED: torch.ones(3), LAYOUT: layout(b"\xff\xff")}, "layout.*utf-8"),
        ({PACKED: torch.ones(3), LAYOUT: layout(b"{}").repeat(2)}, rf"layout.*\b{MAX_LAYOUT_BYTES}\b"),
        ({PACKED: torch.ones(3), LAYOUT: layout(b"{}")[:-3]}, rf"layout.*\b{MAX_LAYOUT_BYTES}\b"),
        ({PACKED: torch.ones(3), LAYOUT: layout(b"[]")}, r"\[\].*\blayoutheader\b"),
        (edited(lambda s, n: s.update(version=2)), r"\bversion 2\b.*\b1\b"),
        (edited(lambda s, n: s.update(family="lora")), r"'lora'.*\blidb\b"),
        (edited(lambda s, n: s.update(family=["lidb"])), "'family'.*string"),
        (edited(lambda s, n: s.pop("facts")), "'facts'"),
        (edited(lambda s, n: s["facts"].update(basis_seed=-1)), r"-1\b.*'basis_seed'"),
        (edited(lambda s, n: s["facts"].update(basis_seed=1)), r"\bseed 1\b.*\b(out|in) \d+ \d+\b"),
        (edited(lambda s, n: s["facts"].update(probes={})), r"\b0 bases\b.*\b4\b"),
        (edited(lambda s, n: s["facts"].update(probes=7)), r"\b7\b.*'probes'"),
        (edited(lambda s, n: s.update(layers={})), r"\{\}.*\btargets\b"),
        (edited(lambda s, n: s["layers"].update({SMALL[0].name: 9})), r"\b9\b.*\ba\.to_q\b"),
        (edited(lambda s, n: s["layers"].update({SMALL[0].name: -1})), r"-1\b.*\ba\.to_q\b"),
        (edited(lambda s, n: s["layers"].update({SMALL[0].name: True})), r"\bTrue\b.*\ba\.to_q\b"),
        (edited(lambda s, n: s["kinds"][0].pop()), r"\b0\b.*\ba\.to_q\b"),
        (edited(lambda s, n: s["kinds"][0].__setitem__(1, [10**12, 1])), r"\b120 x 1000000000000\b"),
        (edited(lambda s, n: s["kinds"][0].__setitem__(0, [2**20, 60])), r"\b1048576 x 100\b"),
        (edited(lambda s, n: s["kinds"][0].__setitem__(0, [2**30, 60])), rf"\({2**30}, 60\)"),
        (edited(lambda s, n: s["kinds"][0].__setitem__(1, [99, 1])), r"\(201,\).*\b200\b"),
        (edited(lambda s, n: s["kinds"][0].__setitem__(1, [100, 1, 1])), r"\(100, 1, 1\)"),
        (edited(lambda s, n: s["kinds"][0].__setitem__(1, [-100, -1])), r"-100\b.*'kinds\.0\.1\.0'"),
        (edited(lambda s, n: s["kinds"][0].__setitem__(1, 100)), r"\b100\b.*'kinds\.0\.1'"),
        (edited(lambda s, n: n.__setitem__(0, n[0][:-1])), r"\(200,\).*\b201\b"),
        (edited(lambda s, n: n.__setitem__(0, n[0][None])), r"\(1, 201\)"),
        (edited(lambda s, n: n.__setitem__(0, n[0].to(torch.int32))), r"torch\.int32"),
        (edited(lambda s, n: n[0].__setitem__(5, torch.nan)), rf"\bNaN\b.*\b{PACKED}\b"),
    ],
)  # fmt: skip
def test_damaged_tensors_are_refused(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_adapter(tensors)


def test_an_adapter_of_too_many_layers_is_not_written() -> None:
    many = [Target(f"diffusion_model.{i:0400}", (2, 2)) for i in range(3000)]
    with pytest.raises(ValueError, match=rf"\b3000 layers\b.*\b{MAX_LAYOUT_BYTES}\b"):
        pack_adapter(lidb(many, LiDBConfig(rank=1, a=1, b=1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("lora", LoRAConfig(rank=3, alpha=1.5)),
        ("lidb", LiDBConfig(rank=2)),
        ("para", PaRaConfig(rank=3)),
        ("full", FullConfig()),
    ],
)
def test_precision_loss_is_the_relative_error_of_the_change(
    tmp_path: Path, family: str, config: Any, dtype: torch.dtype
) -> None:
    """The reference is a file read back, with dense changes, on the identity for families that need W."""
    adapter = AdapterStack((lidb(SMALL, config, family),))
    save_adapter(adapter, tmp_path / "a.safetensors", dtype)
    ours, theirs = (
        torch.cat([one.delta(torch.eye(target.matrix_shape[0])).detach().double().flatten()
                   for one, target in zip(link.layers.values(), SMALL, strict=True)])
        for link in (adapter.adapters[0], load_adapter(tmp_path / "a.safetensors").adapters[0])
    )  # fmt: skip
    expected = ((ours - theirs).norm() / ours.norm()).item()
    assert adapter_precision_loss(adapter, dtype) == pytest.approx(expected, rel=1e-2, abs=1e-6)
    low, high = {torch.float16: (1e-5, 1e-3), torch.bfloat16: (1e-4, 1e-2), torch.float32: (0, 1e-7)}[dtype]
    assert low <= adapter_precision_loss(adapter, dtype) <= high


@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_precision_loss_of_a_plain_file_is_that_of_its_tensors(alpha: float) -> None:
    link = lidb(SMALL, LoRAConfig(rank=3, alpha=alpha), "lora")
    adapter = AdapterStack((link, lidb(SMALL[:1], FullConfig(), "full")))
    tensors = {name.split("/")[1]: tensor for name, tensor in adapter_tensors(adapter).items()}
    expected = adapter_precision_loss(adapter, torch.float16)
    assert tensor_precision_loss(tensors, torch.float16) == pytest.approx(expected, rel=1e-6) != 0
    assert tensor_precision_loss(tensors, torch.float32) == pytest.approx(0, abs=1e-7)


def test_no_change_has_no_precision_loss() -> None:
    untrained = Adapter.create("lora", SMALL, LoRAConfig(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    assert adapter_precision_loss(AdapterStack((untrained,)), torch.float16) == 0
    assert LAYER_CODECS.keys() | PACKED_CODECS.keys() == FAMILIES.keys()
    assert {name for name, family in FAMILIES.items() if family.has_parameter_layout} == PACKED_CODECS.keys()
