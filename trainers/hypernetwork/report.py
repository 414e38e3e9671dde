"""The report of a hypernetwork's training: the chart of its evaluations, and the lines of the final report."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..reporting.charts import comparison_chart
from .selection import ModelSelection

CURVES = ("own", "shuffled")
"""Losses that change during a training; the baselines do not."""


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Makes the chart and the lines of a training.

    Args:
        selection: the evaluations, and which state was chosen.
        initialization: how the network was initialized, and warnings.
    """

    selection: ModelSelection
    initialization: Sequence[str]

    def chart(self) -> Image.Image | None:
        """Draw the evaluations so far: the losses of own and shuffled predictions, and the baselines."""
        selection = self.selection
        if not selection.results:
            return None
        results = sorted(selection.results.items())
        curves = {name: [(step, getattr(result, name)) for step, result in results] for name in CURVES}
        return comparison_chart(
            curves, baselines=selection.evaluator.baselines, total=selection.config.steps, title="people held out"
        )

    def lines(self, memory: str) -> tuple[str, ...]:
        """Return the lines of the final report.

        They name the initialization, the first, the chosen and the last evaluation, the chosen state, the memory plan
        (``memory``; "" leaves it out), and checkpoints that could not be written.
        """
        selection = self.selection
        shown = sorted({min(selection.results), selection.chosen, max(selection.results)})
        evaluations = [f"at step {step}: {selection.describe(step)}" for step in shown]
        stores = (selection.checkpoints, selection.checkpoints.good)
        failures = [store.failure for store in stores if store.failure]
        return (*self.initialization, *evaluations, self._choice(), *filter(None, [memory]), *failures)

    def _choice(self) -> str:
        chosen, lost = self.selection.chosen, self.selection.lost
        if lost is None:
            return f"the hypernetwork is that of step {chosen}, the best on people held out"
        return (
            f"the hypernetwork is that of step {chosen}; that of step {lost}, the best on people held out, is no "
            "longer on disk"
        )
