"""The step whose parameters are the result of a run: the last one, or the one with the lowest validation loss."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from ...models.adapters.stack import AdapterStack
from ..config import TrainingOptions
from ..engine.checkpoints import CheckpointStore
from ..engine.state import History, TrainState

logger = logging.getLogger("hyperbooth")

SaveKept = Callable[[AdapterStack, int], str]
"""Saves the adapter as of a step of a run that goes on, and returns the name of its file."""


@dataclass
class ResultSelection:
    """Keep the best state of a run, and adapters of it now and then.

    Args:
        options: which step is the result, and the steps between adapters that are kept.
        checkpoints: of the run; its ``good`` file holds the best state, or the last one that passed a check.
        result: returns the run's adapter as it is now.
        save_kept: saves it.
    """

    options: TrainingOptions
    checkpoints: CheckpointStore
    result: Callable[[], AdapterStack] = field(kw_only=True)
    save_kept: SaveKept = field(kw_only=True)
    lines: list[str] = field(default_factory=list, kw_only=True)

    def update(self, state: TrainState, last: int) -> None:
        """Keep what is to be kept after a step.

        Args:
            state: of the run.
            last: number of its last step.
        """
        history = state.history
        best = best_step(history) if self.options.takes_best else None
        passed = history.divergence_checks[-1][0] == history.step < last
        if best == history.step or (best is None and passed):
            self.checkpoints.good.save(state)
        if self.options.keep_every and history.step % self.options.keep_every == 0 and history.step < last:
            self._keep(history.step)

    def _keep(self, step: int) -> None:
        """Save the adapter of this step; a full disk is reported, and the run goes on."""
        try:
            self.lines.append(f"kept step {step}: {self.save_kept(self.result(), step)}")
        except (OSError, ValueError) as error:
            self.lines.append(f"warning: the adapter of step {step} could not be kept: {error}")
            logger.warning("%s", self.lines[-1])

    def restore(self, state: TrainState) -> None:
        """Set ``state``, at its last step, to the result, and say in the report which step that is."""
        if not self.options.takes_best:
            self.checkpoints.good.forget()
            return
        best, last = best_step(state.history), state.history.step
        if best is None or best == last:
            return
        if self.checkpoints.good.load(state, best, best):
            self.lines.append(f"the result is step {best}, whose validation loss is the lowest of {last} steps")
        else:
            self.lines.append(
                f"warning: the result is the last step, {last}; step {best}, whose validation loss is the lowest, is "
                "not on disk any more"
            )


def best_step(history: History) -> int | None:
    """Return the trained step with the lowest validation loss, or None if none was measured."""
    measured = [entry for entry in history.validation if entry[0] > 0]
    return min(measured, key=lambda entry: entry[1])[0] if measured else None
