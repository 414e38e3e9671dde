"""What the whole network left on record for a run on a hollow one: in memory, or in files."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files.safetensors_io import write_tensors
from ..units import in_mib
from .network import Activation, HollowedNetwork


class Source(Protocol):
    """Draws that can be recorded."""

    def names(self, batch: int) -> list[str]:
        """Of the draws of a batch."""

    def recorded(self, batch: int, hollow: HollowedNetwork) -> Iterator[tuple[str, list[Activation]]]:
        """Each of them, with what the whole network's blocks gave."""


class Store(Protocol):
    """Where records are kept, by name."""

    def __contains__(self, name: str) -> bool: ...

    def write(self, name: str, records: list[Activation]) -> None:
        """Keep what each span gave."""

    def read(self, name: str) -> list[Activation]:
        """What each span gave."""

    @property
    def bytes(self) -> int:
        """What is kept takes so much."""

    def size(self, name: str) -> int:
        """Bytes of that record."""

    def free(self) -> int:
        """Bytes that there are for more."""

    def forget(self) -> None:
        """Remove everything."""


@dataclass
class MemoryStore:
    """Records in main memory.

    Args:
        unused: bytes of it that nothing uses.
    """

    unused: Callable[[], int]
    kept: dict[str, list[Activation]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.kept

    def write(self, name: str, records: list[Activation]) -> None:
        self.kept[name] = [tuple(tensor.cpu() for tensor in record) for record in records]

    def read(self, name: str) -> list[Activation]:
        return self.kept[name]

    @property
    def bytes(self) -> int:
        return sum(map(self.size, self.kept))

    def size(self, name: str) -> int:
        return sum(tensor.nbytes for record in self.kept[name] for tensor in record)

    def free(self) -> int:
        return self.unused()

    def forget(self) -> None:
        self.kept.clear()


@dataclass
class DiskStore:
    """Records in a folder, a file for each draw, written atomically and mapped into memory when read."""

    folder: Path

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def write(self, name: str, records: list[Activation]) -> None:
        tensors = {f"{span}.{n}": t.cpu() for span, record in enumerate(records) for n, t in enumerate(record)}
        write_tensors(tensors, self._path(name))

    def read(self, name: str) -> list[Activation]:
        with suppress(OSError):
            os.utime(self.folder)  # in use: other runs leave it alone, see States.drop_records
        try:
            tensors = load_file(self._path(name))
        except FileNotFoundError as error:
            raise ValueError(
                f"what was recorded on disk has gone ({self._path(name).name}): somebody removed it, or another run "
                "with the same inputs has ended; queue again"
            ) from error
        spans = 1 + max(int(key.split(".")[0]) for key in tensors)
        counts = [sum(key.startswith(f"{span}.") for key in tensors) for span in range(spans)]
        return [tuple(tensors[f"{span}.{n}"] for n in range(count)) for span, count in enumerate(counts)]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def size(self, name: str) -> int:
        return self._path(name).stat().st_size

    def free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


@dataclass(frozen=True)
class ActivationCache:
    """What the blocks taken out gave for a fixed set of draws, in place of those blocks.

    Args:
        batches: how many different batches there are; training goes through them in turn.
    """

    hollow: HollowedNetwork
    store: Store
    batches: int

    def turn(self, batch: int) -> int:
        """Which recorded batch stands for batch number ``batch``."""
        return batch % self.batches

    def of(self, batches: range) -> list[int]:
        """The recorded batches that stand for these."""
        return sorted({self.turn(batch) for batch in batches[: self.batches]})

    def fill(
        self, source: Source, batches: Sequence[int], show: Callable[[int, int], None],
        check: Callable[[int, int], None] = lambda size, more: None,
    ) -> None:  # fmt: skip
        """Record what of ``batches`` is not on record yet.

        Args:
            show: called with how many are on record, and their number.
            check: called after each one recorded, with its bytes and how many more there are to come.
        """
        missing = {batch for batch in batches if not all(name in self.store for name in source.names(batch))}
        for done, batch in enumerate(batches, 1):
            if not all(self._sound(name) for name in source.names(batch)):
                for name, records in source.recorded(batch, self.hollow):
                    self.store.write(name, records)
                missing.discard(batch)
                check(sum(map(self.store.size, source.names(batch))), len(missing))
            show(done, len(batches))

    def _sound(self, name: str) -> bool:
        try:
            return name in self.store and bool(self.store.read(name))
        except (OSError, SafetensorError, ValueError, KeyError):
            return False

    @contextmanager
    def given(self, name: str, part: slice, device: torch.device) -> Iterator[None]:
        """Inside the block the network runs on what is on record for ``part`` of the draw ``name``."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor[part].to(device)

        records = [tuple(map(moved, record)) for record in self.store.read(name)]
        with self.hollow.recorded(records):
            yield

    def describe(self) -> str:
        """One line for the report."""
        return f"recorded: {in_mib(self.store.bytes)}"
