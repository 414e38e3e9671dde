"""Training within the free memory: choose a plan, run under it, retry under a tighter one when memory runs out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from .memory_plan import MemoryNeeds, MemoryPlan, choose_plan

logger = logging.getLogger("hyperbooth")

T = TypeVar("T")

MEMORY_ADVICE = (
    "lower the resolution in Subject, train fewer layers or a lower rank, choose the optimizer adafactor, "
    "or load the model in fp8 (Load Diffusion Model, weight_dtype)"
)
"""What to turn down when memory runs out while training an adapter."""


class FreeMemory(Protocol):
    """The free memory of the training device."""

    def free_memory(self) -> int:
        """Return the bytes free on the device."""

    def make_room(self, needed: int) -> None:
        """Move weights off the device until ``needed`` bytes are free, as far as possible."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether ``error`` reports that memory ran out, and free what can be freed.

        Main memory counts as well as the device's.
        """


@dataclass(kw_only=True)
class MemoryPlanner:
    """A memory plan, and the strategy to choose and tighten it.

    A trainer makes one, lets it measure (if it can), and gives its work as a function of the plan::

        planner = MemoryPlanner(
            memory=session.memory, batch_size=4, precision=session.model.precision, auto=options.memory == "auto",
            plan=MemoryPlan(checkpointing=options.gradient_checkpointing),
        )
        planner.choose(lambda: measure_needs(...))       # a trainer that cannot measure leaves this out
        planner.run(lambda plan: train(..., plan), where=lambda: f"at step {step}", advice="lower the resolution")
        report.append(planner.line)

    The planner keeps the plan, so that a trainer of many batches starts each at the plan of the one before. Whatever
    depends on the plan (micro-batches of a loss, checkpointing, a note in the history) is set in the function itself,
    which every attempt calls anew.

    Args:
        memory: the device's memory; :class:`trainers.session.DeviceMemory` is one.
        batch_size: samples of a batch: the largest number of micro-batches.
        precision: name of the computation's dtype, for the report.
        plan: the current plan; to begin with, the least tight one.
        auto: choose and tighten the plan; False keeps it as it was set.
        may_checkpoint: a tighter plan may switch checkpointing on.
        advice: what to turn down if the plan may not be enough.
        line: what was chosen, for the report; "" before anything was.
    """

    memory: FreeMemory
    batch_size: int
    precision: str
    plan: MemoryPlan
    auto: bool = True
    may_checkpoint: bool = True
    advice: str = MEMORY_ADVICE
    line: str = ""

    def choose(self, measure: Callable[[], MemoryNeeds]) -> None:
        """Choose the plan by what a run needs, make room for it, and log it.

        A plan kept as set is only reported. If memory does not suffice to measure, the tightest plan is chosen.

        Args:
            measure: runs one sample, see :func:`.memory_plan.measure_needs`; not called for a plan kept as set.
        """
        if not self.auto:
            self.line = f"{self._describe()} (as set)"
        elif (needs := self._measured(measure)) is None:
            self.plan = MemoryPlan(self.batch_size, checkpointing=self.may_checkpoint or self.plan.checkpointing)
            self.line = self._describe()
        else:
            self.plan = choose_plan(needs, self.memory.free_memory(), self.batch_size, self.plan)
            self.memory.make_room(needs.of(self.plan, self.batch_size))
            self.line = self._describe_needs(needs, self.memory.free_memory())
        logger.info("%s", self.line)

    def run(self, attempt: Callable[[MemoryPlan], T], *, advice: str, where: Callable[[], str] = lambda: "") -> T:
        """Return ``attempt(plan)``, tried under tighter and tighter plans while memory runs out.

        ``attempt`` continues from the state that a failed one left. The next one starts after the failed one's
        exception is gone, and with it the frames that held its tensors.

        Args:
            attempt: does the work under a plan.
            advice: what to turn down when no plan suffices, for the error message.
            where: names the point where memory ran out ("at step 5"), for log and error message.

        Raises:
            torch.OutOfMemoryError: there is no tighter plan, or the plan is kept as set.
        """
        while True:
            try:
                return attempt(self.plan)
            except Exception as error:
                if not self.memory.is_out_of_memory(error):
                    raise
            self._tighten(" ".join(filter(None, ("out of memory", where()))), advice)

    def _measured(self, measure: Callable[[], MemoryNeeds]) -> MemoryNeeds | None:
        """Return the needs, or None if not even one forward fits."""
        try:
            return measure()
        except Exception as error:
            if not self.memory.is_out_of_memory(error):
                raise
            return None

    def _tighten(self, failure: str, advice: str) -> None:
        tighter = self.plan.tighter(self.batch_size, self.may_checkpoint) if self.auto else None
        if tighter is None:
            raise torch.OutOfMemoryError(f"{failure}; {', '.join((*self._not_used(), advice))}")
        self.plan = tighter
        self.line = self._describe()
        logger.warning("%s; continuing with %s", failure, tighter.describe(self.batch_size))

    def _not_used(self) -> list[str]:
        """Return the savings that a plan kept as set does not make."""
        if self.auto:
            return []
        return ["set memory to 'auto'"] + ([] if self.plan.checkpointing else ["switch gradient_checkpointing on"])

    def _describe(self) -> str:
        return f"memory: computing in {self.precision}, {self.plan.describe(self.batch_size)}"

    def _describe_needs(self, needs: MemoryNeeds, free: int) -> str:
        needed = needs.of(self.plan, self.batch_size)
        room = f"about {needed / 2**30:.2f} GiB in addition to the model, of {free / 2**30:.2f} GiB free"
        line = f"{self._describe()}: {room}"
        return line if needed <= free else f"{line}. That may not be enough; {self.advice}"
