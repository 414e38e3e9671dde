"""Where a training run stands: everything that its next step depends on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .ema import EMA
from .optimizers import OPTIMIZERS, STATE_PER_NUMBER

SCALE = 2.0**12
"""Where the search for float16's loss scale starts; PyTorch's own 2^16 wastes the first steps of every run."""


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float


@dataclass
class History:
    """What happened so far.

    Args:
        step: optimiser updates done.
        losses: of each step.
        validation: ``(step, loss)`` of each validation.
        probes: the same of each look at whether the run still learns, see :mod:`.guard`.
        skipped: updates that float16's range made impossible, and how many of them in a row just now.
        pieces, checkpointing: the memory plan the run was under: another gives another rounding.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    probes: list[tuple[int, float]] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0
    pieces: int = 1
    checkpointing: bool = False

    @property
    def best(self) -> tuple[int, float] | None:
        """The validation with the lowest loss."""
        return min(self.validation, key=lambda entry: entry[1], default=None)


@dataclass(frozen=True)
class Snapshot:
    """A state as tensors and plain numbers, on the CPU: what a file keeps.

    Where the state is on the CPU itself they are its own tensors, good until the next step: a full DreamBooth's are
    gigabytes.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def bytes_per_number(optimizer: str, average: bool = False) -> int:
    """Of gradient, optimizer and average, all float32, for each trained number."""
    return 4 * (1 + STATE_PER_NUMBER[optimizer] + average)


class TrainState:
    """Parameters, optimizer, average, loss scale and history of a run.

    Args:
        groups: what is trained, at which rates.
        optimizer: name in :data:`OPTIMIZERS`.
        ema_decay: of the moving average, 0 for none.
        half: gradients pass through float16, whose range needs the loss scaled.
    """

    def __init__(self, groups: Sequence[Group], optimizer: str = "adamw", ema_decay: float = 0.0, half: bool = False):
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.rates = [group.learning_rate for group in groups]
        settings = [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups]
        self._optimizer = optimizer
        self.optimizer = OPTIMIZERS[optimizer](settings)
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=half, init_scale=SCALE)
        self.average = EMA(self.parameters, ema_decay) if ema_decay else None
        self.history = History()

    @property
    def bytes_per_number(self) -> int:
        """Of gradient, optimizer and average, all float32, for each trained number."""
        return bytes_per_number(self._optimizer, self.average is not None)

    def set_rate(self, share: float) -> None:
        """Every group's learning rate times ``share``."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    @contextmanager
    def result(self) -> Iterator[None]:
        """Inside the block the parameters hold what the run would give now: the average, if there is one."""
        if self.average is None:
            yield
        else:
            with self.average.in_place():
                yield

    def is_finite(self) -> bool:
        """Whether every parameter is a number."""
        return all(math.isfinite(p.detach().sum().item()) for p in self.parameters)

    def snapshot(self) -> Snapshot:
        """The state now."""
        tensors = {f"parameter/{i}": p.detach() for i, p in enumerate(self.parameters)}
        if self.average is not None:
            tensors |= {f"average/{i}": value for i, value in enumerate(self.average.values)}
        plain: dict[str, dict[str, Any]] = {}
        for i, entries in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
            plain[str(i)] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
        history = {**vars(self.history), "losses": None}
        tensors["losses"] = torch.tensor(self.history.losses, dtype=torch.float64)
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        numbers = {"history": history, "optimizer": plain, "scaler": self.scaler.state_dict(), "tensors": sorted(kept)}
        return Snapshot(kept, numbers)

    def restore(self, snapshot: Snapshot) -> None:
        """Be the state that was copied, bit for bit.

        Raises:
            KeyError, ValueError, RuntimeError: the snapshot is of another run.
        """
        if sorted(snapshot.tensors) != snapshot.numbers["tensors"]:
            raise ValueError("it is not whole")
        places = {f"parameter/{i}": parameter for i, parameter in enumerate(self.parameters)}
        places |= {f"average/{i}": value for i, value in enumerate(self.average.values if self.average else ())}
        if wrong := [name for name, place in places.items() if snapshot.tensors[name].shape != place.shape]:
            raise ValueError(f"{', '.join(wrong[:4])}: other shapes")
        if not all(torch.isfinite(snapshot.tensors[name]).all() for name in places):
            raise ValueError("it holds numbers that are none")
        history, optimizer = _history(snapshot), _optimizer_state(snapshot)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
        if snapshot.numbers["scaler"]:
            self.scaler.load_state_dict(dict(snapshot.numbers["scaler"]))
        with torch.no_grad():
            for name, place in places.items():
                place.copy_(snapshot.tensors[name])
        self.history = history


def _history(snapshot: Snapshot) -> History:
    entries = dict(snapshot.numbers["history"])
    entries["losses"] = snapshot.tensors["losses"].tolist()
    for name in ("validation", "probes"):
        entries[name] = [(step, loss) for step, loss in entries[name]]
    history = History(**entries)
    if len(history.losses) != history.step:
        raise ValueError(f"it holds {len(history.losses)} losses of {history.step} steps")
    return history


def _optimizer_state(snapshot: Snapshot) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {int(i): dict(plain) for i, plain in snapshot.numbers["optimizer"].items()}
    for name, tensor in snapshot.tensors.items():
        if name.startswith("optimizer/"):
            _, i, key = name.split("/")
            state[int(i)][key] = tensor.clone()  # a file is read in place, and may be replaced
    return state
