"""The processes that share a run, on one machine or many.

Trainers ask a :class:`ProcessGroup`, which alone is one process. :class:`TorchProcessGroup` is the same over
torch.distributed, so that one code serves both:

    shards of a batch -> gradients of sample means, each divided by the whole batch -> summed -> one update

which is the update of one process but for the rounding of float32 (a sum in another order).
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as engine
from torch import Tensor

T = TypeVar("T")

MEETING = timedelta(minutes=10)
"""For processes to find each other."""
PATIENCE = timedelta(days=7)
"""For who waits for others: shares of a bank end hours apart. A process that dies is noticed by torchrun at once."""
STORE_APART = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""PyTorch's switch: processes that are restarted meet in a new store, not in that of the dead ones, whose addresses
they would call in vain (pytorch issue 135712)."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process is number ``rank`` of ``of``, and knows nothing of the others."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank} of {self.world_size}; give one from 0 to {self.world_size - 1}")

    @property
    def is_main(self) -> bool:
        """Whether this is the one that measures, reports and writes."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Which of ``count`` rows are this process's: together all of them, in order, of nearly equal length."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def all_reduce_scalars(self, *numbers: float) -> Sequence[float]:
        """Each number summed over the processes, in float64."""
        return numbers

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the processes, in place."""

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes what the leader holds, in place."""

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """What the leader makes: plain numbers, texts and lists of them, exactly. The others wait for it."""
        return make()

    def all_gather_object(self, value: T) -> list[T]:
        """What every process says here, by rank; plain values as of :meth:`broadcast_object`. All wait for all."""
        return [value]


SINGLE = ProcessGroup()


@dataclass(frozen=True)
class TorchProcessGroup(ProcessGroup):
    """One of the processes of a group of torch.distributed."""

    group: Any = None

    def all_reduce_scalars(self, *numbers: float) -> Sequence[float]:
        told = torch.tensor(numbers, dtype=torch.float64)
        engine.all_reduce(told, group=self.group)
        return told.tolist()

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])  # one message instead of hundreds
        engine.all_reduce(flat, group=self.group)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            engine.broadcast(tensor, 0, group=self.group)

    def broadcast_object(self, make: Callable[[], T]) -> T:
        said = _letters(make()) if self.is_main else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(said)])
        self.broadcast_([length])
        said = said if self.is_main else torch.empty(int(length), dtype=torch.uint8)
        self.broadcast_([said])
        return _value(said)

    def all_gather_object(self, value: T) -> list[T]:
        said, lengths = _letters(value), [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        engine.all_gather(lengths, torch.tensor([len(said)]), group=self.group)
        longest = int(max(lengths))
        rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        engine.all_gather(rows, torch.nn.functional.pad(said, (0, longest - len(said))), group=self.group)
        return [_value(row[: int(length)]) for row, length in zip(rows, lengths, strict=True)]


def _letters(value: Any) -> Tensor:
    """As JSON: PyTorch's own way to send objects is pickle."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _value(letters: Tensor) -> Any:
    return json.loads(bytes(letters.tolist()))


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The processes that torchrun started, met and connected: gloo on the CPU, nccl between GPUs. Without torchrun,
    this process alone.

    Raises:
        ValueError: torchrun is to restart processes, and could not.
    """
    if "RANK" not in os.environ:
        yield SINGLE
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("TORCHELASTIC_MAX_RESTARTS") != "0":
        raise ValueError(f"--max-restarts needs the environment variable {STORE_APART}=1 where torchrun is started")
    between_gpus = torch.cuda.is_available() and engine.is_nccl_available()
    engine.init_process_group("cpu:gloo,cuda:nccl" if between_gpus else "gloo", timeout=MEETING)
    try:
        yield TorchProcessGroup(engine.get_rank(), engine.get_world_size(), engine.new_group(timeout=PATIENCE))
    finally:
        engine.destroy_process_group()
