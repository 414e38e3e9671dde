"""The live view of a training: progress, the loss chart and samples, at a bounded share of the time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from ..engine.state import History
from .charts import chart_with_sample, loss_chart

CHART_SHARE = 0.02
"""The largest share of the training time that is spent on drawing charts."""

OnProgress = Callable[[int, int, Image.Image | None], None]
"""Called with (steps done, of, image or None)."""
OnHistory = Callable[[History], None]
"""Called at the start of a run and after every step."""
Sample = Callable[[], Image.Image | None]
"""Makes a sample of the model as it is; None where that is impossible."""
MakeLiveView = Callable[[Sample], OnHistory]
"""Returns the callback of a run."""


@dataclass(kw_only=True)
class LiveView:
    """The callback that reports progress after every step, with a new image now and then.

    Before the first step it reports 0 steps, which shows that the run has started.

    Args:
        total: steps of the run.
        on_progress: receives (steps done, of, image or None).
        sample: makes a sample of the model as it is.
        preview_every: steps between samples; 0 for none.
        sample_at_start: whether a sample is shown before the first step.
        draws: whether anybody sees images; without, no chart is drawn and no sample is made.
    """

    total: int
    on_progress: OnProgress
    sample: Sample
    preview_every: int
    sample_at_start: bool = False
    draws: bool = True
    _sample: Image.Image | None = field(default=None, init=False)
    _drawn: float = field(default=0.0, init=False)
    _cost: float = field(default=0.0, init=False)

    def __call__(self, history: History) -> None:
        step = history.step
        if not self.draws:
            self.on_progress(step, self.total, None)
            return
        if step == 0:
            self.on_progress(step, self.total, self.sample() if self.sample_at_start else None)
            return
        new_sample = self.preview_every > 0 and step % self.preview_every == 0
        if new_sample:
            self._sample = self.sample()
        due = time.monotonic() - self._drawn >= self._cost / CHART_SHARE
        image = self._draw(history) if new_sample or due or step == self.total else None
        self.on_progress(step, self.total, image)

    def _draw(self, history: History) -> Image.Image | None:
        start = time.monotonic()
        image = chart_with_sample(loss_chart(history, self.total), self._sample)
        self._drawn = time.monotonic()
        self._cost = self._drawn - start
        return image
