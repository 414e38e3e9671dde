"""Charts: what they show, and what drawing them may cost."""

import sys
import time
from typing import Any

import numpy as np
import pytest
from hyperbooth.trainers.engine.state import History
from hyperbooth.trainers.reporting import charts, image_grid
from hyperbooth.trainers.reporting.charts import block_chart, chart_with_sample, comparison_chart, loss_chart, smoothed
from hyperbooth.trainers.reporting.live_view import CHART_SHARE, LiveView
from PIL import Image


def test_smoothing_has_no_bias_and_follows() -> None:
    assert smoothed([2.0] * 10) == pytest.approx([2.0] * 10)
    noisy = np.random.default_rng(0).normal(1.0, 0.5, 400).tolist()
    assert np.std(smoothed(noisy)[100:]) < 0.25 * np.std(noisy)


def test_the_curve_is_drawn() -> None:
    empty, full = (
        np.asarray(loss_chart(History(losses=losses), 50), dtype=int) for losses in ([1.0], [1.0, 3.0, 2.0] * 10)
    )
    assert full.shape == (320, 512, 3)
    assert np.abs(full - empty).max() > 100


def test_validation_is_a_curve_of_its_own_with_the_best_step_marked() -> None:
    losses = [1.0, 3.0, 2.0] * 10
    validated = History(losses=losses, validation=[(0, 2.0), (10, 1.2), (20, 1.6)])
    assert validated.best == (10, 1.2)
    without, chart = (np.asarray(loss_chart(h, 50), dtype=int) for h in (History(losses=losses), validated))
    gold = np.abs(chart - np.array([0xED, 0xAE, 0x49])).max(-1) < 8
    assert gold.sum() > 20 and not (np.abs(without - np.array([0xED, 0xAE, 0x49])).max(-1) < 8).any()


def test_a_sample_is_drawn_next_to_the_chart() -> None:
    chart = loss_chart(History(losses=[1.0, 2.0]), 2)
    joined = chart_with_sample(chart, Image.new("RGB", (64, 64), (255, 0, 0)))
    assert joined.size == (512 + 320, 320)
    assert joined.getpixel((600, 100)) == (255, 0, 0)


def test_blocks_are_bars() -> None:
    assert block_chart({"input_blocks.1": 0.1, "middle_block": 0.0}, relative=True).size == (768, 384)


def test_drawing_takes_a_bounded_share_of_the_time() -> None:
    shown: list[Image.Image | None] = []
    view = LiveView(
        total=1000, on_progress=lambda done, of, image: shown.append(image), sample=lambda: None, preview_every=0
    )
    start = time.monotonic()
    losses: list[float] = []
    for step in range(1, 400):
        losses.append(1.0)
        view(History(step=step, losses=losses))
        time.sleep(0.001)
    drawn = sum(image is not None for image in shown)
    assert 1 <= drawn <= 2 + (time.monotonic() - start) * CHART_SHARE / view._cost
    assert len(shown) == 399


def test_samples_come_at_their_steps_and_stay_in_the_image() -> None:
    taken: list[int] = []
    state = History()
    images: dict[int, Image.Image | None] = {}

    def sample() -> Image.Image:
        taken.append(state.step)
        return Image.new("RGB", (8, 8))

    view = LiveView(
        total=10, on_progress=lambda done, of, image: images.__setitem__(done, image), sample=sample, preview_every=4
    )
    for _ in range(10):
        state.step += 1
        state.losses.append(1.0)
        view(state)
    assert taken == [4, 8]
    assert images[4].width > 512 and images[10].width > 512


def test_a_comparison_shows_curves_and_baselines() -> None:
    rest = {"baselines": {"base": 0.07, "mean": 0.06}, "total": 10, "title": "people held out"}
    one = comparison_chart({"own": [(0, 0.06)], "shuffled": [(0, 0.06)]}, **rest)
    two = comparison_chart({"own": [(0, 0.06), (10, 0.05)], "shuffled": [(0, 0.06), (10, 0.065)]}, **rest)
    assert one.size == two.size == (512, 320) and one.tobytes() != two.tobytes()


def test_without_matplotlib_there_are_no_charts_and_nothing_ends(monkeypatch: Any, caplog: Any) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    charts._report_failure.cache_clear()
    history = History(step=2, losses=[1.0, 2.0])
    assert loss_chart(history, 2) is None and block_chart({"a": 1.0}, relative=True) is None
    assert comparison_chart({"a": [(0, 1.0)]}, baselines={}, total=2, title="") is None
    (record,) = caplog.records
    assert record.name == "hyperbooth" and "matplotlib" in record.getMessage()
    sample, shown = Image.new("RGB", (64, 64)), []
    view = LiveView(
        total=2, on_progress=lambda done, of, image: shown.append(image), sample=lambda: sample, preview_every=2
    )
    view(history)
    assert shown == [sample]
    image_grid._font.cache_clear()
    assert image_grid.image_grid([[sample]], above=["a name"]).width > 64
    image_grid._font.cache_clear()


def test_a_font_that_cannot_be_read_ends_nothing(monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("Can not load face (unknown file format)")

    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.draw", broken)
    assert loss_chart(History(step=1, losses=[1.0]), 2) is None
