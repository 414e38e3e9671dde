"""What the user sees while it trains: progress, the loss curve, samples; at a bounded share of the time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from ..engine.state import History
from .charts import chart_with_sample, loss_chart

CHART_SHARE = 0.02
"""The chart is drawn again when this share of the time since the last one pays for it."""

Show = Callable[[int, int, Image.Image | None], None]
"""Receives (steps done, of, picture or None)."""
OnHistory = Callable[[History], None]
"""Is called at the start of a run and after every step."""
MakeLiveView = Callable[[Callable[[], Image.Image | None]], OnHistory]
"""Receives what makes a sample of the model as it stands, or None where it cannot."""


@dataclass
class LiveView:
    """Called after every step; shows progress, with a new picture now and then. Before the first step, a sign of life.

    Args:
        total: steps of the run.
        show: where to.
        sample: makes a sample of the model as it stands, or None where it cannot.
        preview_every: steps between samples; 0 for none.
        at_start: whether there is a sample before the first step.
    """

    total: int
    show: Show
    sample: Callable[[], Image.Image | None]
    preview_every: int
    at_start: bool = False
    _sample: Image.Image | None = field(default=None, init=False)
    _drawn: float = field(default=0.0, init=False)
    _cost: float = field(default=0.0, init=False)

    def __call__(self, history: History) -> None:
        step = history.step
        if step == 0:
            self.show(step, self.total, self.sample() if self.at_start else None)
            return
        new_sample = self.preview_every > 0 and step % self.preview_every == 0
        if new_sample:
            self._sample = self.sample()
        due = time.monotonic() - self._drawn >= self._cost / CHART_SHARE
        picture = self._draw(history) if new_sample or due or step == self.total else None
        self.show(step, self.total, picture)

    def _draw(self, history: History) -> Image.Image:
        start = time.monotonic()
        picture = chart_with_sample(loss_chart(history, self.total), self._sample)
        self._drawn = time.monotonic()
        self._cost = self._drawn - start
        return picture
