"""Test what all benchmarks share: clock, peak memory, processes, table and report. No figures are asserted."""

import json
import mmap
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.safetensors_io import write_tensors
from hyperbooth.models.subject_bank.manifest import Manifest
from hyperbooth.models.subject_bank.shards import SubjectFit, write_shard

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def opened(name: str) -> ModuleType:
    """Import a module of the benchmarks, which are scripts: their folder is on ``sys.path`` while they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return import_module(name)


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    return opened("common.harness")


@pytest.fixture(scope="module")
def order(harness: ModuleType) -> ModuleType:
    return opened("common.rank_correlation")


def test_clock_ticks_at_any_optimiser_and_takes_its_hook_off(harness: ModuleType) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    clock = harness.StepClock()
    optimizers = torch.optim.AdamW([weight]), torch.optim.SGD([weight])
    with clock.on_optimizer_steps():
        for optimizer in optimizers * 2:
            optimizer.step()
    optimizers[0].step()
    assert len(clock.stamps) == 4
    assert len(clock.seconds) == 3 and min(clock.seconds) > 0
    assert len(clock.cpu_seconds) == 3 and min(clock.cpu_seconds) >= 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the device there")
def test_peak_sees_memory_that_is_gone_again(harness: ModuleType) -> None:
    with harness.peak_memory() as before:
        pass
    with harness.peak_memory() as peak, mmap.mmap(-1, 200_000_000) as fresh:  # new, whatever earlier tests left
        fresh.write(b"1" * 200_000_000)
    with harness.peak_memory() as after:
        pass
    assert peak.bytes - before.bytes > 150e6
    assert peak.bytes - after.bytes > 150e6


def test_sampled_peak_where_there_is_no_high_water_mark(harness: ModuleType) -> None:
    peak = harness.Peak()
    with harness._sampled_resident_set(peak):
        held = torch.ones(50_000_000)
        time.sleep(4 * harness.SAMPLING_SECONDS)
    assert peak.bytes > held.nbytes


def test_a_row_is_the_last_json_line_of_its_process(harness: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "row.py"
    script.write_text("import sys\nprint('{}')\nprint('{\"seconds\": 1.5}')\nprint('bye')\nsys.exit(len(sys.argv) - 1)")
    assert harness.in_own_process(str(script), []) == {"seconds": 1.5}
    with pytest.raises(RuntimeError, match=r"row\.py --fail ended with 1"):
        harness.in_own_process(str(script), ["--fail"])


def test_best_of_keeps_the_fastest_whole_run(harness: ModuleType) -> None:
    runs = [{"s": 2.0, "peak": 7}, {"skipped": "no memory"}, {"s": 1.0, "peak": 8}]
    assert harness.best_of("a", runs, "s") == {"name": "a", "s": 1.0, "peak": 8, "s_worst": 2.0, "runs": 2}
    assert harness.best_of("a", runs[1:2], "s") == {"name": "a", "skipped": "no memory"}


def test_table_lines_up_and_says_why_a_row_is_empty(harness: ModuleType) -> None:
    rows = [{"name": "long name", "s": 12.3456}, {"name": "b", "skipped": "no memory"}]
    lines = harness.table(rows, [harness.Column("s per step", "s", harness.seconds)]).splitlines()
    assert [line.rstrip() for line in lines] == [
        "           s per step",
        "long name      12.346",
        "b                   -  no memory",
    ]


def test_aims_are_told_not_asserted(harness: ModuleType) -> None:
    aim = harness.Aim("ours", "times_floor", 1.1)
    assert aim.verdict({"ours": {"times_floor": 1.05}}).startswith("met ")
    assert aim.verdict({"ours": {"times_floor": 1.2}}).startswith("NOT MET ")
    assert aim.verdict({"ours": {"skipped": "no memory"}}).startswith("not measured ")


def test_report_names_bench_machine_and_rows(harness: ModuleType, tmp_path: Path) -> None:
    machine = harness.machine(2)
    path = tmp_path / "results" / "some.json"
    harness.write_json("some", machine, [{"name": "a", "seconds": 1.0}], path)
    assert json.loads(path.read_text()) == {
        "bench": "some",
        "machine": machine,
        "rows": [{"name": "a", "seconds": 1.0}],
    }
    assert [file.name for file in path.parent.iterdir()] == ["some.json"]
    assert machine["threads"] == 2 and machine["comfyui"][0].isdigit() and machine["torch"] == torch.__version__
    assert not any(str(value).startswith("/") for value in machine.values())


def small_run(folder: Path, name: str, *rows: str) -> list[Any]:
    """Run rows of a benchmark on the small U-Net; saved results need the large one and every row."""
    report = folder / "report.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--small", "--rows", ",".join(rows)]
    command += ["--steps", "1", "--repeats", "1", "--latent", "8", "--threads", "1", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text())["rows"]


def test_the_training_benchmark_runs(tmp_path: Path) -> None:
    (row,) = small_run(tmp_path, "train", "ours")
    assert row["seconds_per_step"] > 0 and row["peak_bytes"] > 0


def test_the_families_benchmark_runs(tmp_path: Path) -> None:
    lora, para = small_run(tmp_path, "families", "lora", "para")
    assert para["times_lora"] > 0 and para["peak_times_lora"] > 0
    assert para["parameters"] < lora["parameters"] and para["file_bytes"] < lora["file_bytes"]


def test_the_bank_benchmark_runs(tmp_path: Path) -> None:
    alone, floor, bank, world = small_run(tmp_path, "bank", "one_by_one", "floor_4", "bank_4", "world_one_by_one")
    assert bank["subjects"] == 4 and bank["seconds_per_subject"] > 0
    assert bank["people_per_hour"] == pytest.approx(36 / bank["seconds_per_subject"])
    assert bank["times_own_floor"] == pytest.approx(bank["seconds_per_step"] / floor["seconds_per_step"])
    assert bank["speed_up"] == pytest.approx(alone["seconds_per_step"] / bank["seconds_per_subject"])
    assert world["steps"] == 20, "steps of the small world are short"
    assert "times_own_floor" not in world, "there is no ratio to the other network"


def test_the_benchmark_of_one_picture_runs(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(BENCHMARKS / "one_picture.py"), "--small", "--side", "64", "--steps", "2"]
    command += ["--repeats", "1", "--threads", "1", "--dtype", "float32", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *stages, whole = json.loads(report.read_text())["rows"]
    assert [row["name"] for row in stages] == ["encode the image", "predict", "fast fine-tune"]
    assert whole["seconds"] == pytest.approx(sum(row["seconds"] for row in stages)) and whole["peak_bytes"] > 0
    assert "MET" not in done.stdout.upper(), "the aim is for the real size on a GPU"


def test_bytes_of_people_are_those_of_a_shard(tmp_path: Path) -> None:
    """Compare the formula with files; without a measurement there are no hours."""
    people = opened("people")
    layout = ParameterLayout.of(
        Adapter.create("lidb", [Target("a", (4, 4))], LiDBConfig(rank=1, a=2, b=2), torch.Generator())
    )
    manifest = Manifest(layout, {"prompt": "a sks face", "steps": 7}, {"base": "SD15", "weights": {}}, {})
    person = people.Person(numbers=4, pictures=2, side=16, tokens=5, width=6)
    path = write_shard(
        tmp_path,
        manifest,
        fits={name: SubjectFit(0.2, 0.1) for name in "abc"},
        image_counts=[2] * 3,
        theta=torch.zeros(3, 4),
        images=torch.zeros(6, 16, 16, 3, dtype=torch.uint8),
        latents=torch.zeros(6, 4, 2, 2),
    )
    features = tmp_path / "features.safetensors"
    write_tensors({"tokens": torch.zeros(6, 5, 6, dtype=torch.half)}, features)
    assert (data_bytes(path), data_bytes(features)) == (3 * person.in_shards, 3 * person.in_features)
    assert people.people_per_hour(tmp_path / "none.json") is None
    assert people.table(person, [1000], [2], None).splitlines()[-1] == "| 1,000 | 0.00 GB | 0.00 GB |"
    assert people.table(people.Person(), [15_000], [1, 3], 50.0).endswith("| 14.58 GB | 9.87 GB | 300.0 | 100.0 |")


def data_bytes(path: Path) -> int:
    """Return the size of a safetensors file without its header."""
    return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")


def test_a_rank_correlation_is_spearmans(order: ModuleType) -> None:
    """Without ties it is ``1 - 6 sum d^2 / (n (n^2 - 1))`` of the ranks; ties share their mean rank."""
    a, b = [3.0, 1.0, 2.0, 10.0, -4.0], [0.1, 0.4, 0.2, 0.9, 0.3]
    ranks = [[sorted(values).index(v) for v in values] for values in (a, b)]
    squares = sum((x - y) ** 2 for x, y in zip(*ranks, strict=True))
    assert order.spearman(a, b) == pytest.approx(1 - 6 * squares / (5 * 24))
    assert order.spearman([1, 1, 2], [1, 1, 2]) == pytest.approx(1)
    assert order.spearman([1, 1, 2], [2, 1, 3]) == pytest.approx(0.866, abs=1e-3)


def test_subjects_are_ordered_within_each_way_to_personalise(order: ModuleType) -> None:
    """A method that is better in all scores orders no subject."""

    def people(shift: float, sign: float) -> list[dict[str, float]]:
        names = {name: None for pair in order.ORDERS.items() for name in pair}
        return [{name: shift + (sign if name in order.ORDERS else 1) * i for name in names} for i in range(4)]

    both = order.correlate_rows([people(0, 1), people(100, -1)])
    assert both["rank_clip_i"] == pytest.approx(0) and both["rank_clip_i_error"] == pytest.approx(1)
    assert order.correlate_rows([people(0, 1)]) == {f"rank_{score}": pytest.approx(1) for score in order.ORDERS}
    assert order.correlate_subjects(people(0, 1)[:2]) == {}
    assert order.correlate_rows([people(0, 1), people(0, 0)])["rank_clip_i"] == pytest.approx(1)


def test_ways_are_ordered_within_each_subject(order: ModuleType) -> None:
    """Differences between subjects do not matter; a subject for whom a method failed is left out."""

    def method(value: float) -> list[dict[str, float]]:
        names = {name: None for pair in order.ORDERS.items() for name in pair}
        return [dict.fromkeys(names, 100 * person + value) for person in range(3)]

    methods = [method(value) for value in (0.3, 0.1, 0.2)]
    assert order.correlate_methods(methods)["rank_clip_i"] == pytest.approx(1)
    for person, row in enumerate(methods[0]):
        row["clip_i"] = -1.0 if person else row["clip_i"]
    assert order.correlate_methods(methods)["rank_clip_i"] == pytest.approx((1 - 0.5 - 0.5) / 3)
    methods[1][0] = {"failed": "nan"}
    assert order.correlate_methods(methods)["rank_clip_i"] == pytest.approx(-0.5)


def test_the_stock_trainer_gets_as_many_steps_as_fit_into_our_time(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of steps is an integer, as the stock node requires."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    quality = import_module("quality")
    method = quality.same_time({"stock_500": {"seconds": 36.4, "steps": 500}, "lora_8": {"seconds": 10.0}})
    assert method.steps == 140 and isinstance(method.steps, int)
    assert set(quality.METHODS["stock_same_time"].needs) == {"lora_8", "stock_500"}


@pytest.mark.parametrize("name", ["quality", "hyperdreambooth"])
def test_every_aim_of_a_comparison_is_a_figure_of_a_row(
    name: str, harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark, metrics, comparison = (
        import_module(name) for name in (name, "common.oracle_metrics", "common.comparison")
    )
    figures = dict.fromkeys([*metrics.FIGURES, *metrics.SCENES], 0.5) | dict.fromkeys(metrics.COSTS, 1)
    done = {name: comparison.summary(name, [figures] * 2, 0) for name in benchmark.METHODS}
    for other in benchmark.OTHERS:
        comparison.add_differences(done, other)
    assert [aim for aim in benchmark.AIMS if aim.figure not in done[aim.row]] == []


def test_people_with_whom_a_row_failed_are_counted_and_left_out(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diverged run is a result: it neither stops the others nor is repeated."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    result_cache, comparison = import_module("common.result_cache"), import_module("common.comparison")
    asked: list[int] = []

    def run(method: str, number: int) -> tuple[dict[str, float], torch.Tensor]:
        asked.append(number)
        if number == 1:
            raise FloatingPointError("the loss is nan")
        return {"identity": float(number)}, torch.zeros(5, 2, 2, 3)

    for _ in range(2):
        cache = result_cache.ResultCache(tmp_path, "world", run)
        rows = cache.rows("lora", "method", [0, 1, 2])
    assert asked == [0, 1, 2] and rows == [{"identity": 0.0}, {"failed": "the loss is nan"}, {"identity": 2.0}]
    assert cache.image("lora", "method", 1) is None and cache.image("lora", "method", 2).shape == (5, 2, 2, 3)
    assert comparison.summary("lora", [], 3)["failed"] == 3
