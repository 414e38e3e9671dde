"""The digest of a file: every flipped bit is noticed, and files without a digest are read as before."""

import json
from pathlib import Path

import pytest
import torch
from hyperbooth.models.adapters import FullConfig, LiDBConfig, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.models.files.digest import DIGEST, check_digest, file_digest, row_checksums
from safetensors import safe_open
from safetensors.torch import save_file

CONFIGS = {
    "lora": LoRAConfig(rank=2), "lidb": LiDBConfig(rank=1, a=8, b=8), "para": PaRaConfig(rank=2), "full": FullConfig()
}  # fmt: skip


def saved(path: Path, family: str) -> bytes:
    targets = [Target("diffusion_model.a", (8, 8))]
    adapter = Adapter.create(family, targets, CONFIGS[family], torch.Generator().manual_seed(0))
    save_adapter(AdapterStack((adapter,), {"steps": 3}), path)
    return path.read_bytes()


@pytest.mark.parametrize("family", CONFIGS)
def test_every_flipped_bit_of_an_adapter_is_noticed(tmp_path: Path, family: str) -> None:
    path = tmp_path / "a.safetensors"
    whole = saved(path, family)
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in range(start, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"a\.safetensors .*damaged"):
            load_adapter(path)


@pytest.mark.parametrize("family", CONFIGS)
def test_an_adapter_of_before_has_no_digest_and_is_read(tmp_path: Path, family: str) -> None:
    path = tmp_path / "a.safetensors"
    saved(path, family)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata[DIGEST] == file_digest(metadata["hyperbooth"], tensors)
    del metadata[DIGEST]
    save_file(tensors, path, metadata)
    assert load_adapter(path).metadata["steps"] == 3


def test_what_a_digest_is_of() -> None:
    tensors = {"a": torch.arange(4.0), "b": torch.zeros(2, 0)}
    first = file_digest("header", tensors)
    others = [
        file_digest("headers", tensors),
        file_digest("header", {"a": torch.arange(4.0)}),
        file_digest("header", {**tensors, "a": torch.arange(4.0).view(2, 2)}),
        file_digest("header", {**tensors, "a": torch.arange(4.0).view(torch.int32)}),
        file_digest("header", {"b": tensors["a"], "a": tensors["b"]}),
        file_digest("header", {**tensors, "a": -torch.arange(4.0)}),
    ]
    assert len({first, *others}) == 7 and file_digest("header", dict(reversed(tensors.items()))) == first
    check_digest({DIGEST: first}, "header", tensors)
    for metadata in ({}, {DIGEST: others[0]}):
        with pytest.raises(ValueError, match="damaged"):
            check_digest(metadata, "header", tensors)
    assert file_digest("\ud800", {}) != file_digest("", {})


def test_rows_have_checksums_of_their_own() -> None:
    rows = torch.arange(12.0).view(3, 2, 2)
    sums = row_checksums(rows)
    assert len(set(sums)) == 3 and row_checksums(rows[1:]) == sums[1:] and json.dumps(sums)
