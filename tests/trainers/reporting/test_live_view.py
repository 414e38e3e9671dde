"""The live view of a training."""

from typing import Any

from hyperbooth.trainers.engine.state import History
from hyperbooth.trainers.reporting.live_view import LiveView


def test_before_the_first_step_progress_is_reported_without_a_sample() -> None:
    """A start from the model's weights may take a while; the model has no adapter to show yet."""

    def sample() -> Any:
        raise AssertionError("sampled")

    shown: list[Any] = []
    LiveView(total=10, on_progress=lambda *given: shown.append(given), sample=sample, preview_every=1)(History())
    assert shown == [(0, 10, None)]


def test_after_a_step_there_is_a_chart() -> None:
    shown: list[Any] = []
    view = LiveView(total=10, on_progress=lambda *given: shown.append(given), sample=lambda: None, preview_every=0)
    view(History(step=1, losses=[1.0]))
    ((done, total, image),) = shown
    assert (done, total) == (1, 10) and image is not None


def test_a_sample_before_the_first_step_is_shown_if_asked_for() -> None:
    """A hypernetwork has baselines before the first step, since its linear initialization predicts already."""
    shown: list[Any] = []
    view = LiveView(
        total=10, on_progress=lambda *given: shown.append(given), sample=lambda: "chart", preview_every=5,
        sample_at_start=True,
    )  # fmt: skip
    view(History())
    assert shown == [(0, 10, "chart")]


def test_where_nobody_sees_images_none_is_made() -> None:
    def sample() -> Any:
        raise AssertionError("sampled")

    shown: list[Any] = []
    view = LiveView(
        total=4, on_progress=lambda *given: shown.append(given), sample=sample, preview_every=2, sample_at_start=True,
        draws=False,
    )  # fmt: skip
    for step in range(5):
        view(History(step=step, losses=[1.0] * step))
    assert shown == [(step, 4, None) for step in range(5)]
