"""What is kept of the whole network's runs, in memory and on disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hyperbooth.models.hollowed_net.activation_cache import ActivationCache, DiskStore, MemoryStore, Store
from hyperbooth.models.hollowed_net.network import Activation, HollowedNetwork, Span
from torch import nn


class Draws:
    """Batches of two draws, and how often each was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def names(self, batch: int) -> list[str]:
        return [f"{batch}.own", f"{batch}.prior"]

    def recorded(self, batch: int, hollow: HollowedNetwork) -> Iterator[tuple[str, list[Activation]]]:
        self.asked.append(batch)
        for number, name in enumerate(self.names(batch)):
            yield name, [(torch.full((3, 2), batch + 0.5 * number), torch.full((3, 1), -1, dtype=torch.bfloat16))]


@pytest.fixture(params=["ram", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore(lambda: 1 << 40) if request.param == "ram" else DiskStore(tmp_path / "records")


def nobody(*_: int) -> None:
    """Looks at the progress."""


HOLLOW = HollowedNetwork([Span([nn.Identity()])])


def test_what_is_written_is_read(store: Store) -> None:
    draws, seen = Draws(), []
    ActivationCache(HOLLOW, store, 4).fill(draws, range(4), lambda *at: seen.append(at))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)] and draws.asked == [0, 1, 2, 3]
    ((own, bits),) = store.read("3.prior")
    assert torch.equal(own, torch.full((3, 2), 3.5))
    assert bits.dtype == torch.bfloat16 and bits.shape == (3, 1)
    assert store.bytes >= 8 * (3 * 2 * 4 + 3 * 2)


def test_only_what_is_missing_is_recorded(store: Store) -> None:
    ActivationCache(HOLLOW, store, 2).fill(Draws(), range(2), nobody)
    draws = Draws()
    ActivationCache(HOLLOW, store, 5).fill(draws, range(5), nobody)
    assert draws.asked == [2, 3, 4]


def test_what_is_still_to_come_is_known_after_each(store: Store) -> None:
    ActivationCache(HOLLOW, store, 1).fill(Draws(), range(1), nobody)
    told: list[tuple[int, int]] = []
    ActivationCache(HOLLOW, store, 4).fill(Draws(), range(4), nobody, lambda *at: told.append(at))
    (size,) = {size for size, _ in told}
    assert [more for _, more in told] == [2, 1, 0] and 4 * size == store.bytes
    assert store.free() > 0


def test_a_damaged_file_is_recorded_again(tmp_path: Path) -> None:
    store, draws = DiskStore(tmp_path), Draws()
    ActivationCache(HOLLOW, store, 3).fill(draws, range(3), nobody)
    path = tmp_path / "1.own.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    ActivationCache(HOLLOW, store, 3).fill(draws, range(3), nobody)
    assert draws.asked == [0, 1, 2, 1]
    assert torch.equal(store.read("1.own")[0][0], torch.full((3, 2), 1.0))


def test_only_what_will_be_used_is_needed() -> None:
    records = ActivationCache(HOLLOW, MemoryStore(lambda: 0), 4)
    assert records.of(range(2)) == [0, 1]
    assert records.of(range(3, 5)) == [0, 3]
    assert records.of(range(1, 100)) == [0, 1, 2, 3]


def test_batches_come_in_turn_and_in_parts(store: Store) -> None:
    records = ActivationCache(HOLLOW, store, 2)
    records.fill(Draws(), range(records.batches), nobody)
    assert [records.turn(batch) for batch in range(5)] == [0, 1, 0, 1, 0]
    (block,) = HOLLOW.blocks
    with records.given("1.own", slice(1, 3), torch.device("cpu")):
        assert torch.equal(block(torch.zeros(2, 2)), torch.full((2, 2), 1.0))
    assert torch.equal(block(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_forgotten_it_is_gone(store: Store, tmp_path: Path) -> None:
    records = ActivationCache(HOLLOW, store, 1)
    records.fill(Draws(), range(records.batches), nobody)
    store.forget()
    assert "0.own" not in store and not list(tmp_path.rglob("*.safetensors"))
