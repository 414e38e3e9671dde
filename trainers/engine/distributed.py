"""Data-parallel training over torch.distributed, on one machine or many.

Trainers take a :class:`ProcessGroup`, which is a single process. :class:`TorchProcessGroup` has the same methods over
torch.distributed, so that one code serves both:

    shards of a batch -> gradients of sample means, each divided by the whole batch -> all-reduced -> one update

which is the update of a single process but for the rounding of float32 (a sum in another order).
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

CONNECT_TIMEOUT = timedelta(minutes=10)
"""For processes to find each other."""
WAIT_TIMEOUT = timedelta(days=7)
"""For processes that wait for others: shards of a bank end hours apart. torchrun notices at once when one dies."""
SEPARATE_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""PyTorch's switch: restarted processes meet in a new store instead of that of the dead ones, whose addresses they
would try in vain (pytorch issue 135712)."""


@dataclass(frozen=True)
class ProcessGroup:
    """A single process; the base class of a group of processes.

    Args:
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank} of {self.world_size}; give one from 0 to {self.world_size - 1}")

    @property
    def is_main(self) -> bool:
        """Whether this is the process that measures, reports and writes."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Return this process's part of ``count`` rows; consecutive parts, whose lengths differ by 1 at most."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def all_reduce_scalars(self, *values: float) -> Sequence[float]:
        """Return each value summed over the processes, in float64."""
        return values

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to its sum over the processes."""

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to that of the main process."""

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns on the main process, for which the others wait.

        Values are those that JSON holds exactly: numbers, strings, and lists and mappings of them.
        """
        return make()

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all processes, by rank; each waits for all. Types: see :meth:`broadcast_object`."""
        return [value]


SINGLE = ProcessGroup()


@dataclass(frozen=True)
class TorchProcessGroup(ProcessGroup):
    """One of the processes of a torch.distributed group."""

    group: Any = None

    def all_reduce_scalars(self, *values: float) -> Sequence[float]:
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self.group)
        return summed.tolist()

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])  # one message instead of hundreds
        dist.all_reduce(flat, group=self.group)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor, 0, group=self.group)

    def broadcast_object(self, make: Callable[[], T]) -> T:
        encoded = _encode(make()) if self.is_main else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(encoded)])
        self.broadcast_([length])
        encoded = encoded if self.is_main else torch.empty(int(length), dtype=torch.uint8)
        self.broadcast_([encoded])
        return _decode(encoded)

    def all_gather_object(self, value: T) -> list[T]:
        encoded, lengths = _encode(value), [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(lengths, torch.tensor([len(encoded)]), group=self.group)
        longest = int(max(lengths))
        rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        dist.all_gather(rows, torch.nn.functional.pad(encoded, (0, longest - len(encoded))), group=self.group)
        return [_decode(row[: int(length)]) for row, length in zip(rows, lengths, strict=True)]


def _encode(value: Any) -> Tensor:
    """Return the bytes of a value as JSON: PyTorch's own way to send objects is pickle."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(encoded: Tensor) -> Any:
    return json.loads(bytes(encoded.tolist()))


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Connect the processes that torchrun started inside the block: gloo on the CPU, nccl between GPUs.

    Without torchrun the group is this process.

    Raises:
        ValueError: torchrun is set to restart processes, which this environment does not allow.
    """
    if "RANK" not in os.environ:
        yield SINGLE
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("TORCHELASTIC_MAX_RESTARTS") != "0":
        raise ValueError(f"--max-restarts needs the environment variable {SEPARATE_STORE}=1 where torchrun is started")
    between_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if between_gpus else "gloo", timeout=CONNECT_TIMEOUT)
    try:
        yield TorchProcessGroup(dist.get_rank(), dist.get_world_size(), dist.new_group(timeout=WAIT_TIMEOUT))
    finally:
        dist.destroy_process_group()
