"""Cached activations of the complete network, in memory and on disk."""

import shutil
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import pytest
import torch
from hyperbooth.models.files.digest import DIGEST, file_digest
from hyperbooth.models.hollowed_net.activation_cache import ActivationCache, DiskStore, MemoryStore, Store
from hyperbooth.models.hollowed_net.network import Activation, HollowedNetwork, Span
from safetensors.torch import load_file, save_file
from torch import nn


class FakeSource:
    """Batches of two samples; counts how often each batch is recorded."""

    def __init__(self) -> None:
        self.recorded: list[int] = []

    def sample_names(self, batch: int) -> list[str]:
        return [f"{batch}.own", f"{batch}.prior"]

    def sample_kinds(self, batch: int) -> list[Hashable]:
        return ["all alike"] * 2

    def record_batch(self, batch: int, hollow: HollowedNetwork) -> Iterator[tuple[str, list[Activation]]]:
        self.recorded.append(batch)
        for index, name in enumerate(self.sample_names(batch)):
            yield name, [(torch.full((3, 2), batch + 0.5 * index), torch.full((3, 1), -1, dtype=torch.bfloat16))]


@pytest.fixture(params=["ram", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore(lambda: 1 << 40) if request.param == "ram" else DiskStore(tmp_path / "records")


def ignore_progress(*_: int) -> None:
    """Ignore the progress."""


HOLLOW = HollowedNetwork([Span([nn.Identity()])])


def test_written_activations_are_read_back(store: Store) -> None:
    source, seen = FakeSource(), []
    ActivationCache(HOLLOW, store, 4).fill(source, range(4), lambda *progress: seen.append(progress))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)] and source.recorded == [0, 1, 2, 3]
    ((first, second),) = store.read("3.prior")
    assert torch.equal(first, torch.full((3, 2), 3.5))
    assert second.dtype == torch.bfloat16 and second.shape == (3, 1)
    assert store.total_bytes >= 8 * (3 * 2 * 4 + 3 * 2)


def test_only_missing_batches_and_one_of_each_kind_are_recorded(store: Store) -> None:
    ActivationCache(HOLLOW, store, 2).fill(FakeSource(), range(2), ignore_progress)
    source = FakeSource()
    ActivationCache(HOLLOW, store, 5).fill(source, range(5), ignore_progress)
    assert source.recorded == ([2, 3, 4] if isinstance(store, MemoryStore) else [0, 2, 3, 4])


def test_size_and_remaining_batches_are_reported_after_each_recorded_one(store: Store) -> None:
    ActivationCache(HOLLOW, store, 1).fill(FakeSource(), range(1), ignore_progress)
    reported: list[tuple[int, int]] = []
    ActivationCache(HOLLOW, store, 4).fill(
        FakeSource(), range(4), ignore_progress, lambda *space: reported.append(space)
    )
    (size,) = {size for size, _ in reported}
    assert [remaining for _, remaining in reported][-3:] == [2, 1, 0] and 4 * size == store.total_bytes
    assert store.free_bytes() > 0


def rewritten(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[DiskStore], None]:
    """Return a damage: a file of other tensors, with the digest that belongs to them."""

    def damage(store: DiskStore) -> None:
        tensors = load_file(store.folder / "1.own.safetensors")
        change(tensors)
        digest = file_digest(f"{store.folder.name}/1.own", tensors)
        save_file(tensors, store.folder / "1.own.safetensors", {DIGEST: digest})

    return damage


def cut(store: DiskStore) -> None:
    path = store.folder / "1.own.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def flip(store: DiskStore) -> None:
    path = store.folder / "1.own.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def swap(store: DiskStore) -> None:
    shutil.copy(store.folder / "2.own.safetensors", store.folder / "1.own.safetensors")


DAMAGES = {
    "cut off": cut,
    "a flipped bit": flip,
    "another sample's": swap,
    "another shape": rewritten(lambda tensors: tensors.update({"0.0": torch.ones(2, 3)})),
    "another dtype": rewritten(lambda tensors: tensors.update({"0.0": torch.ones(3, 2).half()})),
    "NaN": rewritten(lambda tensors: tensors["0.0"].fill_(torch.nan)),
    "one more": rewritten(lambda tensors: tensors.update({"0.2": torch.ones(1)})),
    "another span": rewritten(lambda tensors: tensors.update({"1.0": torch.ones(1)})),
    "a gap": rewritten(lambda tensors: tensors.update({"0.9": tensors.pop("0.1")})),
    "other names": rewritten(lambda tensors: tensors.update({"x": torch.ones(1), "1.2.3": torch.ones(1)})),
    "nothing": rewritten(lambda tensors: tensors.clear()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_cannot_be_used_is_recorded_again(tmp_path: Path, damage: str) -> None:
    store, source = DiskStore(tmp_path), FakeSource()
    ActivationCache(HOLLOW, store, 3).fill(source, range(3), ignore_progress)
    DAMAGES[damage](store)
    ActivationCache(HOLLOW, store, 3).fill(source, range(3), ignore_progress)
    assert source.recorded == [0, 1, 2, 0, 1]  # the first one is recorded for the shapes
    assert torch.equal(store.read("1.own")[0][0], torch.full((3, 2), 1.0))


def test_only_batches_that_training_uses_are_needed() -> None:
    cache = ActivationCache(HOLLOW, MemoryStore(lambda: 0), 4)
    assert cache.cached_batches(range(2)) == [0, 1]
    assert cache.cached_batches(range(3, 5)) == [0, 3]
    assert cache.cached_batches(range(1, 100)) == [0, 1, 2, 3]


def test_training_cycles_through_batches_and_replays_some_rows(store: Store) -> None:
    cache = ActivationCache(HOLLOW, store, 2)
    cache.fill(FakeSource(), range(cache.batch_count), ignore_progress)
    assert [cache.cached_batch(batch) for batch in range(5)] == [0, 1, 0, 1, 0]
    (block,) = HOLLOW.blocks
    with cache.replaying("1.own", slice(1, 3), torch.device("cpu")):
        assert torch.equal(block(torch.zeros(2, 2)), torch.full((2, 2), 1.0))
    assert torch.equal(block(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_a_cleared_store_is_empty(store: Store, tmp_path: Path) -> None:
    cache = ActivationCache(HOLLOW, store, 1)
    cache.fill(FakeSource(), range(cache.batch_count), ignore_progress)
    store.clear()
    assert "0.own" not in store and not list(tmp_path.rglob("*.safetensors"))
