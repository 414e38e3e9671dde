"""The state of a training run: everything that its next step depends on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .ema import EMA
from .optimizers import OPTIMIZERS, STATE_PER_PARAMETER

INITIAL_LOSS_SCALE = 2.0**12
"""Where the search for float16's loss scale starts; PyTorch's own 2^16 wastes the first steps of every run."""

_FILE_NAMES = {"divergence_checks": "probes", "micro_batches": "pieces"}
"""Fields of :class:`History` that state files hold under another name."""


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float


@dataclass(kw_only=True)
class History:
    """What a run has measured so far.

    Args:
        step: optimizer updates done.
        losses: training loss of each step.
        validation: ``(step, loss)`` of each validation.
        divergence_checks: ``(step, loss)`` of each divergence check on fixed noise, see :mod:`.divergence`.
        skipped: updates skipped because float16 overflowed.
        skipped_in_a_row: how many of them directly before this step.
        micro_batches, checkpointing: the memory plan of the run: under another one, rounding differs.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    divergence_checks: list[tuple[int, float]] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0
    micro_batches: int = 1
    checkpointing: bool = False

    @property
    def best(self) -> tuple[int, float] | None:
        """The ``(step, loss)`` of the validation with the lowest loss."""
        return min(self.validation, key=lambda entry: entry[1], default=None)

    def to_metadata(self) -> dict[str, Any]:
        """Return the fields as JSON values, but for the losses, which a state file holds as a tensor."""
        return {**{_FILE_NAMES.get(name, name): value for name, value in vars(self).items()}, "losses": None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], losses: Sequence[float]) -> "History":
        """Return the history of which :meth:`to_metadata` made ``metadata``.

        Raises:
            KeyError, TypeError, ValueError: the metadata are not those of a history of ``len(losses)`` steps.
        """
        names = {file_name: name for name, file_name in _FILE_NAMES.items()}
        entries = {names.get(name, name): value for name, value in metadata.items()} | {"losses": list(losses)}
        for name in ("validation", "divergence_checks"):
            entries[name] = [(step, loss) for step, loss in entries[name]]
        history = cls(**entries)
        if len(history.losses) != history.step:
            raise ValueError(f"it holds {len(history.losses)} losses of {history.step} steps")
        return history


@dataclass(frozen=True)
class Snapshot:
    """A state as tensors and plain values, on the CPU: the content of a state file.

    The tensors of a state on the CPU are not copied, so that they are valid until the next step only: those of a full
    DreamBooth take gigabytes.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


def bytes_per_parameter(optimizer: str, ema: bool = False) -> int:
    """Return the bytes of gradient, optimizer state and EMA, all float32, for each trained value."""
    return 4 * (1 + STATE_PER_PARAMETER[optimizer] + ema)


class TrainState:
    """Parameters, optimizer, EMA, loss scale and history of a run.

    Args:
        groups: the trained parameters with their learning rates.
        optimizer: name in :data:`.optimizers.OPTIMIZERS`.
        ema_decay: decay of the moving average, 0 for none.
        half: gradients pass through float16, whose range needs a scaled loss.
    """

    def __init__(self, groups: Sequence[Group], optimizer: str = "adamw", ema_decay: float = 0.0, half: bool = False):
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.learning_rates = [group.learning_rate for group in groups]
        settings = [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups]
        self._optimizer = optimizer
        self.optimizer = OPTIMIZERS[optimizer](settings)
        device_type = self.parameters[0].device.type
        self.scaler = torch.amp.GradScaler(device_type, enabled=half, init_scale=INITIAL_LOSS_SCALE)
        self.ema = EMA(self.parameters, ema_decay) if ema_decay else None
        self.history = History()

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes of gradient, optimizer state and EMA, all float32, for each trained value."""
        return bytes_per_parameter(self._optimizer, self.ema is not None)

    def scale_learning_rates(self, factor: float) -> None:
        """Set every group's learning rate to ``factor`` times its own."""
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate * factor

    @contextmanager
    def result(self) -> Iterator[None]:
        """Set the parameters to the run's result so far inside the block: the EMA, if there is one."""
        if self.ema is None:
            yield
        else:
            with self.ema.in_place():
                yield

    def is_finite(self) -> bool:
        """Return whether no parameter is NaN or infinite."""
        return all(math.isfinite(p.detach().sum().item()) for p in self.parameters)

    def snapshot(self) -> Snapshot:
        """Return the state as it is now."""
        tensors = {name: tensor.detach() for name, tensor in self._named_tensors().items()}
        plain: dict[str, dict[str, Any]] = {}
        for i, entries in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
            plain[str(i)] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
        tensors["losses"] = torch.tensor(self.history.losses, dtype=torch.float64)
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {
            "history": self.history.to_metadata(),
            "optimizer": plain,
            "scaler": self.scaler.state_dict(),
            "tensors": sorted(kept),
        }
        return Snapshot(kept, metadata)

    def restore(self, snapshot: Snapshot) -> None:
        """Set the state to that of ``snapshot``, bit for bit.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the snapshot is damaged or of another run.
        """
        if sorted(snapshot.tensors) != snapshot.metadata["tensors"]:
            raise ValueError("it is incomplete")
        own = self._named_tensors()
        if wrong := [name for name, tensor in own.items() if snapshot.tensors[name].shape != tensor.shape]:
            raise ValueError(f"{', '.join(wrong[:4])}: other shapes")
        if not all(torch.isfinite(snapshot.tensors[name]).all() for name in own):
            raise ValueError("it holds values that are NaN or infinite")
        history = History.from_metadata(snapshot.metadata["history"], snapshot.tensors["losses"].tolist())
        optimizer = _optimizer_state(snapshot)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
        if snapshot.metadata["scaler"]:
            self.scaler.load_state_dict(dict(snapshot.metadata["scaler"]))
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(snapshot.tensors[name])
        self.history = history

    def _named_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and their EMA under their names in state files."""
        tensors: dict[str, Tensor] = {f"parameter/{i}": parameter for i, parameter in enumerate(self.parameters)}
        ema = self.ema.values if self.ema else ()
        return tensors | {f"average/{i}": value for i, value in enumerate(ema)}


def _optimizer_state(snapshot: Snapshot) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {int(i): dict(plain) for i, plain in snapshot.metadata["optimizer"].items()}
    for name, tensor in snapshot.tensors.items():
        if name.startswith("optimizer/"):
            _, i, key = name.split("/")
            state[int(i)][key] = tensor.clone()  # a file is memory-mapped, and may be replaced
    return state
