"""The state of a training run: everything that its next step depends on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .ema import EMA
from .optimizers import OPTIMIZERS, STATE_PER_PARAMETER, state_shapes
from .state_header import StateHeader, check_values

INITIAL_LOSS_SCALE = 2.0**12
"""Where the search for float16's loss scale starts; PyTorch's own 2^16 wastes the first steps of every run."""


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

    def to_header(self) -> dict[str, Any]:
        """Return the fields as JSON values for :class:`.state_header.StateHeader`; the losses are a tensor there."""
        names = {"divergence_checks": "probes", "micro_batches": "pieces"}
        return {names.get(name, name): value for name, value in vars(self).items() if name != "losses"}


@dataclass(frozen=True)
class Snapshot:
    """A state as tensors on the CPU and JSON values: the content of a state file.

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
        for i, entries in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
        tensors["losses"] = torch.tensor(self.history.losses, dtype=torch.float64)
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return Snapshot(kept, {"history": self.history.to_header(), "scaler": self.scaler.state_dict()})

    def restore(self, tensors: Mapping[str, Tensor], header: StateHeader) -> None:
        """Set the state to that of :meth:`snapshot`, bit for bit.

        Args:
            tensors: of the snapshot; untrusted, and nothing is changed unless all of them fit this state.
            header: its validated metadata.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape or dtype, or holds a value that no run has;
                or the header is that of a run in another precision.
        """
        history = header.history
        losses = torch.empty(history.step, dtype=torch.float64, device="meta")
        check_values(tensors, {**self._named_tensors(), **self._optimizer_tensors(tensors), "losses": losses})
        if (header.scaler is not None) != self.scaler.is_enabled():
            raise ValueError("it is of a run in another precision")
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in tensors if name.startswith("optimizer/")]:
            _, i, key = name.split("/")
            # A clone: a file is memory-mapped, and may be replaced.
            optimizer.setdefault(int(i), {})[key] = tensors[name].clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
        if header.scaler is not None:
            self.scaler.load_state_dict({**self.scaler.state_dict(), **header.scaler.values()})
        with torch.no_grad():
            for name, tensor in self._named_tensors().items():
                tensor.copy_(tensors[name])
        self.history = History(**history.fields(), losses=tensors["losses"].tolist())

    def _named_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and their EMA under their names in state files."""
        tensors: dict[str, Tensor] = {f"parameter/{i}": parameter for i, parameter in enumerate(self.parameters)}
        ema = self.ema.values if self.ema else ()
        return tensors | {f"average/{i}": value for i, value in enumerate(ema)}

    def _optimizer_tensors(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors on the meta device like those that a file must hold for the optimizer.

        A parameter that no gradient has reached yet has no state; one that has any has all.
        """
        started = {name.split("/")[1] for name in given if name.startswith("optimizer/")}
        return {
            f"optimizer/{i}/{name}": torch.empty(
                shape, dtype=torch.float32 if name == "step" else parameter.dtype, device="meta"
            )
            for i, parameter in enumerate(self.parameters)
            if str(i) in started
            for name, shape in state_shapes(self._optimizer, tuple(parameter.shape)).items()
        }
