"""What the user sees while it trains."""

from typing import Any

from hyperbooth.trainers.engine.state import History
from hyperbooth.trainers.reporting.live_view import LiveView


def test_before_the_first_step_there_is_a_sign_of_life_and_no_sample() -> None:
    """A start from the model's weights may take a while; the model has no adapter to show yet."""

    def sample() -> Any:
        raise AssertionError("sampled")

    shown: list[Any] = []
    LiveView(10, lambda *given: shown.append(given), sample, preview_every=1)(History())
    assert shown == [(0, 10, None)]


def test_after_a_step_there_is_a_chart() -> None:
    shown: list[Any] = []
    watch = LiveView(10, lambda *given: shown.append(given), lambda: None, preview_every=0)
    watch(History(step=1, losses=[1.0]))
    ((done, total, picture),) = shown
    assert (done, total) == (1, 10) and picture is not None


def test_what_can_be_seen_before_the_first_step_is_shown() -> None:
    """The controls of a hypernetwork, whose linear start predicts already."""
    shown: list[Any] = []
    LiveView(10, lambda *given: shown.append(given), lambda: "controls", preview_every=5, at_start=True)(History())
    assert shown == [(0, 10, "controls")]
