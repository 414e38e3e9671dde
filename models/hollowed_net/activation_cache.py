"""Activations of the removed blocks, cached in main memory or on disk for training without those blocks.

Roles: an :class:`ActivationSource` (the loss) runs the complete network and yields activations by sample name; a
:class:`Store` keeps them; the :class:`ActivationCache` fills the store from the source and replays from it.
"""

import math
import os
import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.digest import DIGEST, check_digest, file_digest
from ..files.safetensors_io import write_tensors
from ..units import in_mib
from ..validation import is_finite
from .network import Activation, HollowedNetwork

Shapes = list[list[tuple[torch.Size, torch.dtype]]]
"""Shape and dtype of each tensor of each span."""


def shapes_of(activations: Sequence[Activation]) -> Shapes:
    """Return the shapes and dtypes of a sample's activations."""
    return [[(tensor.shape, tensor.dtype) for tensor in activation] for activation in activations]


class ActivationSource(Protocol):
    """Training samples (latents with their drawn noise and noise level) that the complete network can run on."""

    def sample_names(self, batch: int) -> list[str]:
        """Return the names under which the samples of a batch are cached."""

    def sample_kinds(self, batch: int) -> list[Hashable]:
        """Return one value for each of these names: samples of equal kind have activations of equal shapes."""

    def record_batch(self, batch: int, hollow: HollowedNetwork) -> Iterator[tuple[str, list[Activation]]]:
        """Run the complete network on a batch and yield each sample's name and activations, one per span.

        Args:
            batch: index of the batch.
            hollow: the blocks whose activations are recorded.
        """


class Store(Protocol):
    """Storage of activations by sample name."""

    def __contains__(self, name: str) -> bool: ...

    def write(self, name: str, activations: list[Activation]) -> None:
        """Keep a sample's activations, one per span."""

    def read(self, name: str) -> list[Activation]:
        """Return a sample's activations, one per span."""

    def is_usable(self, name: str, shapes: Shapes | None) -> bool:
        """Return whether a sample's activations are there, of these shapes, as they were written.

        Args:
            name: of the sample.
            shapes: those of an activation of the same kind that this process has recorded; None if it has none yet.
        """

    @property
    def total_bytes(self) -> int:
        """Size of everything in the store, in bytes."""

    def size(self, name: str) -> int:
        """Return the size of a sample's activations, in bytes."""

    def free_bytes(self) -> int:
        """Return how many bytes can still be stored."""

    def clear(self) -> None:
        """Remove everything."""


@dataclass
class MemoryStore:
    """Activations in main memory.

    Args:
        free_memory: returns the bytes of main memory that nothing uses.
    """

    free_memory: Callable[[], int]
    activations: dict[str, list[Activation]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.activations

    def write(self, name: str, activations: list[Activation]) -> None:
        """Keep a copy of a sample's activations in main memory."""
        self.activations[name] = [tuple(tensor.cpu() for tensor in activation) for activation in activations]

    def read(self, name: str) -> list[Activation]:
        """Return a sample's activations, on the CPU."""
        return self.activations[name]

    def is_usable(self, name: str, shapes: Shapes | None) -> bool:
        """Return whether the sample has been recorded."""
        return name in self

    @property
    def total_bytes(self) -> int:
        """Size of all activations, in bytes."""
        return sum(map(self.size, self.activations))

    def size(self, name: str) -> int:
        """Return the size of a sample's activations, in bytes."""
        return sum(tensor.nbytes for activation in self.activations[name] for tensor in activation)

    def free_bytes(self) -> int:
        """Return the bytes of main memory that nothing uses."""
        return self.free_memory()

    def clear(self) -> None:
        """Drop all activations."""
        self.activations.clear()


@dataclass
class DiskStore:
    """Activations in a folder, one safetensors file per sample, written atomically and memory-mapped when read.

    The tensors of a file are named ``<span>.<tensor>``, and its digest is of them and of the sample's name. Files of an
    earlier process are untrusted: :meth:`is_usable`.
    """

    folder: Path

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def write(self, name: str, activations: list[Activation]) -> None:
        """Write a sample's activations to its file."""
        tensors = {key: tensor.cpu() for key, tensor in _named(activations).items()}
        write_tensors(tensors, self._path(name), {DIGEST: file_digest(self._header(name), tensors)})

    def read(self, name: str) -> list[Activation]:
        """Return a sample's activations, memory-mapped.

        Raises:
            ValueError: the file does not exist any more, or is damaged.
        """
        with suppress(OSError):
            os.utime(self.folder)  # marks the folder as in use, so that no other run removes it: see CheckpointStore
        try:
            return self._read(name)[1]
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise ValueError(
                f"the cached activations on disk do not exist any more ({self._path(name).name}): they were removed, "
                "or another run with the same inputs has ended; queue again"
            ) from error

    def is_usable(self, name: str, shapes: Shapes | None) -> bool:
        """Return whether the sample's file has these shapes, finite values and the digest that belongs to them."""
        if shapes is None or name not in self:
            return False
        try:
            metadata, activations = self._read(name)
            if shapes_of(activations) != shapes:
                return False
            check_digest(metadata, self._header(name), _named(activations))
        except (OSError, SafetensorError, ValueError, KeyError):
            return False
        return all(is_finite(tensor, math.inf) for activation in activations for tensor in activation)

    def _header(self, name: str) -> str:
        """Return the text that a file's digest is also of: the run, whose key names the folder, and the sample."""
        return f"{self.folder.name}/{name}"

    def _read(self, name: str) -> tuple[dict[str, str], list[Activation]]:
        with safe_open(self._path(name), framework="pt") as file:
            keys = [key.split(".") for key in file.keys()]  # noqa: SIM118
            counts = [sum(span == str(i) for span, _ in keys) for i in range(len({span for span, _ in keys}))]
            activations = [
                tuple(file.get_tensor(f"{span}.{n}") for n in range(count)) for span, count in enumerate(counts)
            ]
            return file.metadata() or {}, activations

    @property
    def total_bytes(self) -> int:
        """Size of all files, in bytes."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def size(self, name: str) -> int:
        """Return the size of a sample's file, in bytes."""
        return self._path(name).stat().st_size

    def free_bytes(self) -> int:
        """Return the free bytes of the file system."""
        return shutil.disk_usage(self.folder).free

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


@dataclass(frozen=True)
class ActivationCache:
    """Activations of the removed blocks for a fixed set of samples, which training repeats.

    Args:
        hollow: the removed blocks.
        store: where the activations are kept.
        batch_count: number of different batches that are cached; training cycles through them.
        shapes: of what this process has recorded: kind of sample -> shapes.
    """

    hollow: HollowedNetwork
    store: Store
    batch_count: int
    shapes: dict[Hashable, Shapes] = field(default_factory=dict)

    def cached_batch(self, batch: int) -> int:
        """Return the index of the cached batch that training uses as batch number ``batch``."""
        return batch % self.batch_count

    def cached_batches(self, batches: range) -> list[int]:
        """Return the sorted indices of the cached batches that training uses for these batch numbers."""
        return sorted({self.cached_batch(batch) for batch in batches[: self.batch_count]})

    def fill(
        self, source: ActivationSource, batches: Sequence[int], on_progress: Callable[[int, int], None],
        check_space: Callable[[int, int], None] = lambda size, remaining: None,
    ) -> None:  # fmt: skip
        """Record those of ``batches`` that are not cached yet, or whose file cannot be used.

        Of each kind of samples one batch is recorded in any case: its shapes are what the files of an earlier process
        must have.

        Args:
            source: gives the samples' names and kinds and records their activations.
            batches: indices of cached batches.
            on_progress: called after each batch with how many are cached and the number of all.
            check_space: called after each recorded batch with its size in bytes and how many remain to be recorded.
        """
        missing = {batch for batch in batches if not all(name in self.store for name in source.sample_names(batch))}
        for done, batch in enumerate(batches, 1):
            kinds = dict(zip(source.sample_names(batch), source.sample_kinds(batch), strict=True))
            if not all(self.store.is_usable(name, self.shapes.get(kind)) for name, kind in kinds.items()):
                for name, activations in source.record_batch(batch, self.hollow):
                    self.store.write(name, activations)
                    self.shapes[kinds[name]] = shapes_of(activations)
                missing.discard(batch)
                check_space(sum(map(self.store.size, kinds)), len(missing))
            on_progress(done, len(batches))

    @contextmanager
    def replaying(self, name: str, rows: slice, device: torch.device) -> Iterator[None]:
        """Inside the block the network runs without the removed blocks, on a sample's cached activations.

        Args:
            name: of the sample.
            rows: rows of the batch dimension that the network is run on.
            device: of the network.
        """

        def moved(tensor: Tensor) -> Tensor:
            return tensor[rows].to(device)

        activations = [tuple(map(moved, activation)) for activation in self.store.read(name)]
        with self.hollow.replaying(activations):
            yield

    def describe(self) -> str:
        """Return the text for the report: the size of what is cached."""
        return f"recorded: {in_mib(self.store.total_bytes)}"


def _named(activations: Sequence[Activation]) -> dict[str, Tensor]:
    """Return a sample's activations under their names in its file."""
    return {f"{span}.{n}": tensor for span, part in enumerate(activations) for n, tensor in enumerate(part)}
