"""Cached features of a bank: encoded once, stored in its folder or in memory; the row cache."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.digest import DIGEST, file_digest
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.models.subject_bank.manifest import Manifest
from hyperbooth.models.subject_bank.shards import SubjectFit, list_shards, write_shard
from hyperbooth.trainers.hypernetwork import row_cache
from hyperbooth.trainers.hypernetwork.feature_cache import SUBJECTS, FeatureCache
from hyperbooth.trainers.hypernetwork.row_cache import RowCache
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

COUNTS = {"a": 1, "b": 3, "c": 2}


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return write_bank(tmp_path / "bank")


def write_bank(folder: Path, brighter: int = 0) -> Bank:
    """Write three people in two shards, with images of one value: 10 times the person plus the image's index."""
    adapter = Adapter.create(
        "lidb", [Target("diffusion_model.a.to_q", (8, 8))], LiDBConfig(rank=1, a=4, b=4), torch.Generator()
    )
    base = {"base": "SD15", "weights": {"diffusion_model.a": [1.0]}}
    manifest = Manifest(ParameterLayout.of(adapter), {"prompt": "a face", "steps": 1}, base, {})
    manifest.save(folder)
    for names in (("a", "b"), ("c",)):
        values = [10.0 * "abc".index(name) + i + brighter for name in names for i in range(COUNTS[name])]
        images = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).to(torch.uint8)
        write_shard(
            folder,
            manifest,
            fits={name: SubjectFit(1, 1 + brighter) for name in names},
            image_counts=[COUNTS[name] for name in names],
            theta=torch.zeros(len(names), 8),
            images=images.contiguous(),
            latents=torch.zeros(len(images), 4, 2, 2),
        )
    return Bank.open(folder)


def encode(images: Tensor) -> Tensor:
    """Return two tokens: the image's value, and one."""
    value = (255 * images.mean((1, 2, 3))).round()
    return torch.stack([value, torch.ones_like(value)], 1)[..., None]


IMAGES = [(2, 1), (0, 0), (1, 2), (1, 0)]


def test_each_image_is_encoded_once(bank: Bank) -> None:
    seen: list[tuple[int, int]] = []
    first = FeatureCache(bank, "encoder", encode, on_progress=lambda *done: seen.append(done))
    assert first(IMAGES)[:, 0, 0].tolist() == [21, 0, 12, 10] and first(IMAGES).shape == (4, 2, 1)
    assert seen[-1] == (6, 6) and [done for done, _ in seen] == sorted(done for done, _ in seen)

    counted = Counted()
    again = FeatureCache(bank, "encoder", counted, on_progress=lambda *_: None)
    assert torch.equal(first(IMAGES), again(IMAGES)) and counted.images == 1  # for the shape that files must have
    FeatureCache(bank, "another encoder", counted, on_progress=lambda *_: None)
    assert counted.images == 1 + 1 + 6


class Counted:
    """An encoder that counts its images."""

    images = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return encode(images)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


def rewrite(change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """Return a damage that changes the tokens and writes the digest that belongs to them."""

    def damage(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata, tokens = file.metadata(), change(file.get_tensor("tokens").clone())
        digest = file_digest(metadata[SUBJECTS], {"tokens": tokens})
        save_file({"tokens": tokens}, path, {**metadata, DIGEST: digest})

    return damage


DAMAGES = {
    "cut off": cut,
    "a flipped bit": flip,
    "an empty file": lambda path: path.write_bytes(b""),
    "another width": rewrite(lambda tokens: tokens.expand(-1, -1, 3).contiguous()),
    "another number of tokens": rewrite(lambda tokens: tokens[:, :1].contiguous()),
    "more images": rewrite(lambda tokens: torch.cat([tokens, tokens])),
    "fewer images": rewrite(lambda tokens: tokens[1:].clone()),
    "two dimensions": rewrite(lambda tokens: tokens[..., 0].contiguous()),
    "integers": rewrite(lambda tokens: tokens.int()),
    "NaN": rewrite(lambda tokens: tokens * torch.nan),
    "infinite": rewrite(lambda tokens: tokens + torch.inf),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_cannot_be_used_is_encoded_again(bank: Bank, damage: str) -> None:
    whole = FeatureCache(bank, "encoder", encode, on_progress=lambda *_: None)(IMAGES)
    for path in (bank.folder / "features" / "encoder").iterdir():
        DAMAGES[damage](path)
    again = FeatureCache(bank, "encoder", encode, on_progress=lambda *_: None)
    assert torch.equal(again(IMAGES), whole)
    counted = Counted()
    assert torch.equal(FeatureCache(bank, "encoder", counted, on_progress=lambda *_: None)(IMAGES), whole)
    assert counted.images == 1, "what was made again is kept"


def test_features_beyond_half_precision_are_kept_in_float32(bank: Bank) -> None:
    def large(images: Tensor) -> Tensor:
        return encode(images) * torch.where(encode(images)[:, :1] == 21, 1e5, 1.0)

    features = FeatureCache(bank, "encoder", large, on_progress=lambda *_: None)
    assert features(IMAGES)[:, 0, 0].tolist() == [21e5, 0, 12, 10]


def test_an_encoder_that_gives_nan_is_named(bank: Bank) -> None:
    with pytest.raises(ValueError, match="CLIP Vision"):
        FeatureCache(bank, "encoder", lambda images: encode(images) * torch.nan, on_progress=lambda *_: None)


def test_a_bank_rebuilt_in_the_same_folder_is_encoded_again(bank: Bank) -> None:
    FeatureCache(bank, "encoder", encode, on_progress=lambda *_: None)
    for shard in list_shards(bank.folder):
        shard.unlink()
    again = FeatureCache(write_bank(bank.folder, brighter=5), "encoder", encode, on_progress=lambda *_: None)
    assert again(IMAGES)[:, 0, 0].tolist() == [26, 5, 17, 15]


def test_features_stay_in_memory_where_the_folder_is_read_only(bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    (bank.folder / "features").write_text("in the way")
    features = FeatureCache(bank, "encoder", encode, on_progress=lambda *_: None)
    assert features(IMAGES)[:, 0, 0].tolist() == [21, 0, 12, 10]
    assert "memory" in caplog.text


def test_many_rows_are_read_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def read(keys: list[int]) -> Tensor:
        asked.append(list(keys))
        return torch.tensor(keys, dtype=torch.float32)[:, None] * 2

    few = RowCache(read, [3, 1, 2])
    assert few([2, 3]).tolist() == [[4], [6]] and asked == [[3], [3, 1, 2]]
    monkeypatch.setattr(row_cache, "MAX_CACHE_BYTES", 11)
    many = RowCache(read, [3, 1, 2])
    assert many([2, 3]).tolist() == [[4], [6]] and asked[2:] == [[3], [2, 3]]
