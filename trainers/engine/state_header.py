"""Validation of state files: the header's entries and the tensors' values, before any of them is used.

Whoever may write to ComfyUI's output folder can place a state there. The fused optimizers take moments of any shape,
and write beyond them; a count of zero micro-batches or a negative second moment ends every later run.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from ...models import validation
from ...models.validation import Count, Header, Items

VERSION = 2
MAX_MICRO_BATCHES = 2**16
"""Far beyond any batch size."""
MAX_SKIPPED_IN_A_ROW = 64
_WEIGHTS = ("parameter/", "average/")


def _check_measurement(entry: list[Any]) -> list[Any]:
    if len(entry) != 2 or type(entry[0]) is not int or entry[0] < 0 or type(entry[1]) not in (int, float):
        raise ValueError("expected [step, loss]")
    return entry


Measurements = Items[Annotated[list[Any], AfterValidator(_check_measurement)]]
"""A list of ``[step, loss]``."""


class HistoryHeader(Header, extra="forbid"):
    """The history of a run, but for its losses; ``probes`` and ``pieces`` are the names of the first versions."""

    step: Annotated[int, Field(gt=0, le=2**31)]
    validation: Measurements
    divergence_checks: Measurements = Field(alias="probes")
    skipped: Count
    skipped_in_a_row: Annotated[int, Field(ge=0, le=MAX_SKIPPED_IN_A_ROW)]
    micro_batches: Annotated[int, Field(gt=0, le=MAX_MICRO_BATCHES, alias="pieces")]
    checkpointing: bool

    @model_validator(mode="after")
    def _check_steps(self) -> "HistoryHeader":
        for measured in (self.validation, self.divergence_checks):
            steps = [step for step, _ in measured]
            if steps != sorted(set(steps)) or (steps and steps[-1] > self.step):
                raise ValueError(f"measured at steps {steps[:4]}, of a run at step {self.step}")
        if self.skipped > self.step or self.skipped_in_a_row > self.skipped:
            raise ValueError(f"{self.skipped} steps skipped of {self.step}, {self.skipped_in_a_row} of them in a row")
        return self

    def fields(self) -> dict[str, Any]:
        """Return the entries under the names of :class:`.state.History`."""
        measured = {
            name: [(step, float(loss)) for step, loss in getattr(self, name)]
            for name in ("validation", "divergence_checks")
        }
        return self.model_dump() | measured


class ScalerHeader(Header, extra="ignore"):
    """What the search for float16's loss scale has found; its other entries are settings, which are not read back."""

    scale: Annotated[float, Field(gt=0, le=2.0**64)]
    growth_tracker: Count = Field(alias="_growth_tracker")

    def values(self) -> dict[str, Any]:
        """Return the entries under the names of PyTorch's GradScaler."""
        return {"scale": self.scale, "_growth_tracker": self.growth_tracker}


class StateHeader(Header):
    """The header of a state file."""

    version: int
    history: HistoryHeader
    scaler: ScalerHeader | None

    @model_validator(mode="before")
    @classmethod
    def _no_scaler(cls, content: Any) -> Any:
        """PyTorch's disabled scaler has an empty state."""
        return {**content, "scaler": content.get("scaler") or None} if isinstance(content, dict) else content


def parse_state_header(text: str) -> StateHeader:
    """Return the validated header.

    Raises:
        ValueError: it is damaged or of another version; the message begins with a verb.
    """
    content = validation.parse_header(text)
    validation.check_version(content, VERSION)
    return validation.validated(StateHeader, content)


def check_values(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Require that ``tensors`` have exactly the names, shapes and dtypes of ``expected``, and values that a run has.

    Means of squares and counts are not negative, weights are at most :data:`~models.validation.MAX_WEIGHT`, and nothing
    is NaN or infinite.

    Raises:
        ValueError: they do not; the message names the first that does not fit.
    """
    if unlike := sorted(tensors.keys() ^ expected.keys()):
        lacking = unlike[0] in expected
        raise ValueError(f"{'lacks' if lacking else 'holds a tensor of another run,'} {unlike[0]:.80}")
    for name, like in expected.items():
        given = tensors[name]
        if given.shape != like.shape or given.dtype != like.dtype:
            raise ValueError(
                f"holds {name:.80} as {given.dtype} {tuple(given.shape)!s:.80}; expected {like.dtype} "
                f"{tuple(like.shape)}"
            )
    for name, given in tensors.items():
        if not validation.is_finite(given, validation.MAX_WEIGHT if name.startswith(_WEIGHTS) else math.inf):
            raise ValueError(f"holds {validation.NOT_FINITE} in {name:.80}")
        if _is_mean_of_squares(name) and given.numel() and not given.min().item() >= 0:
            raise ValueError(f"holds negative values in {name:.80}")
    _check_counts(tensors)


def _is_mean_of_squares(name: str) -> bool:
    return name.startswith("optimizer/") and not name.endswith("/exp_avg")


def _check_counts(tensors: Mapping[str, Tensor]) -> None:
    """Require that the optimizer has made a whole number of updates, at most one per step, at each parameter."""
    for name, given in tensors.items():
        if name.startswith("optimizer/") and name.endswith("/step"):
            count = given.item()
            if not (math.isfinite(count) and count == int(count) and 1 <= count <= len(tensors["losses"])):
                raise ValueError(f"holds {count} updates in {name:.80}, of {len(tensors['losses'])} steps")
