"""Checkpoints on disk: a resumed run equals an uninterrupted one, and damaged files change nothing."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hyperbooth.models.files.digest import DIGEST, file_digest
from hyperbooth.models.hollowed_net.activation_cache import DiskStore
from hyperbooth.trainers.engine.checkpoints import HEADER, KEPT, LEFTOVER, CheckpointStore
from hyperbooth.trainers.engine.loop import FitConfig, fit
from hyperbooth.trainers.engine.optimizers import OPTIMIZERS, state_shapes
from hyperbooth.trainers.engine.rng import generator_for
from hyperbooth.trainers.engine.state import Group, TrainState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


class Stopped(Exception):
    """End a run as a cancel does."""


def fresh(optimizer: str = "adamw", ema_decay: float = 0.9, half: bool = False) -> TrainState:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 4), (3,), (2, 5, 3))]
    return TrainState([Group(parameters[:1], 0.05), Group(parameters[1:], 0.01)], optimizer, ema_decay, half)


def losses(state: TrainState) -> Any:
    def terms(batch: int) -> list[torch.Tensor]:
        generator = generator_for(7, batch)
        return [(p - torch.randn(p.shape, generator=generator)).square().mean() for p in state.parameters]

    return terms


def train(state: TrainState, steps: int, stop_at: int | None = None) -> None:
    def on_step(now: TrainState) -> None:
        if now.history.step == stop_at:
            raise Stopped

    validate = lambda: float(sum(p.detach().square().sum() for p in state.parameters))  # noqa: E731
    config = FitConfig(steps=steps, lr_scheduler="cosine", warmup_steps=3, gradient_accumulation=2, validation=4)
    with contextlib.suppress(Stopped):
        fit(losses(state), state, config, on_step=on_step, validate=validate)


def same(a: TrainState, b: TrainState) -> None:
    first, second = a.snapshot(), b.snapshot()
    assert json.dumps(first.metadata) == json.dumps(second.metadata)
    assert first.tensors.keys() == second.tensors.keys()
    assert [name for name in first.tensors if not torch.equal(first.tensors[name], second.tensors[name])] == []


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, optimizer: str, half: bool) -> None:
    whole = fresh(optimizer, half=half)
    train(whole, 20)
    for stop in (1, 7, 19):
        states = CheckpointStore(tmp_path, f"run{stop}")
        stopped = fresh(optimizer, half=half)
        train(stopped, 20, stop)
        states.save(stopped)
        again = fresh(optimizer, half=half)
        assert CheckpointStore(tmp_path, f"run{stop}").load(again, 20)
        same(again, stopped)
        train(again, 20)
        same(again, whole)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 19), max_size=4), st.sampled_from([0.0, 0.9]))
def test_any_number_of_stops_at_any_step_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], ema_decay: float
) -> None:
    folder = tmp_path_factory.mktemp("states")
    whole, state = fresh(ema_decay=ema_decay), fresh(ema_decay=ema_decay)
    train(whole, 20)
    for stop in sorted(set(stops)):
        train(state, 20, stop)
        CheckpointStore(folder, "run").save(state)
        state = fresh(ema_decay=ema_decay)
        assert CheckpointStore(folder, "run").load(state, 20)
    train(state, 20)
    same(state, whole)


def saved(folder: Path, key: str = "run", steps: int = 3) -> TrainState:
    state = fresh()
    train(state, 10, steps)
    CheckpointStore(folder, key).save(state)
    return state


def test_a_state_of_more_steps_than_requested_is_not_loaded(tmp_path: Path) -> None:
    saved(tmp_path, steps=5)
    state = fresh()
    assert not CheckpointStore(tmp_path, "run").load(state, 4) and state.history.step == 0
    assert CheckpointStore(tmp_path, "run").load(state, 5) and state.history.step == 5


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_a_damaged_state_is_reported_and_the_run_starts_over(tmp_path: Path, keep: float, caplog: Any) -> None:
    saved(tmp_path)
    path = CheckpointStore(tmp_path, "run").path
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    state = fresh()
    assert not CheckpointStore(tmp_path, "run").load(state, 10)
    assert state.history.step == 0 and path.name in caplog.text


def test_a_state_of_another_shape_changes_nothing(tmp_path: Path) -> None:
    saved(tmp_path)
    other = TrainState([Group([nn.Parameter(torch.ones(4, 4))], 0.1)])
    assert not CheckpointStore(tmp_path, "run").load(other, 10)
    assert torch.equal(other.parameters[0], torch.ones(4, 4)) and other.history.step == 0


def test_the_number_of_states_is_bounded_and_leftovers_are_removed(tmp_path: Path) -> None:
    old, new, foreign = tmp_path / ".old.part", tmp_path / ".new.part", tmp_path / "mine.safetensors"
    for path in (old, new, foreign):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - LEFTOVER - 1))
    keys = [f"{index:032x}" for index in range(7)]
    for index, key in enumerate(keys[:-1]):
        saved(tmp_path, key)
        os.utime(CheckpointStore(tmp_path, key).path, (0, 1000 + index))
    saved(tmp_path, keys[-1])
    kept = [p.stem for p in tmp_path.glob("*.safetensors") if p != foreign]
    assert sorted(kept) == [keys[4], keys[5], keys[6]] and len(kept) == KEPT
    assert not old.exists() and new.exists() and foreign.exists()


def test_recent_and_future_states_obey_the_limit(tmp_path: Path) -> None:
    keys = [f"{index:032x}" for index in range(8)]
    for index, key in enumerate(keys):
        saved(tmp_path, key)
        if index < 2:
            os.utime(CheckpointStore(tmp_path, key).path, (0, time.time() + 10**6))
        time.sleep(0.01)
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == keys[-KEPT:]


def test_a_state_that_cannot_be_removed_costs_nothing(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    saved(tmp_path)

    def held(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "held open", str(path))

    monkeypatch.setattr(Path, "unlink", held)
    store = CheckpointStore(tmp_path, "run")
    store.forget()
    assert store.path.name in caplog.text and "held open" in caplog.text
    assert store.path.exists() and not store.load(fresh(), 10), "it starts over all the same"


def test_a_folder_that_cannot_be_tidied_costs_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(13, "no permission", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(Path, "glob", lambda path, _pattern: refuse(path))
    state = saved(tmp_path)
    assert CheckpointStore(tmp_path, "run").failure is None and CheckpointStore(tmp_path, "run").load(fresh(), 10)
    CheckpointStore(tmp_path, "run").remove_stale_activations()
    assert state.history.step == 3


def test_a_folder_without_permission_holds_no_state(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "no permission", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert not CheckpointStore(tmp_path, "run").exists() and not CheckpointStore(tmp_path, "run").load(fresh(), 10)


def cached(folder: Path, key: str) -> DiskStore:
    """Return cached activations of a run that were last used long ago."""
    store = DiskStore(CheckpointStore(folder, key).activations)
    store.write("0.2", [(torch.zeros(2),)])
    os.utime(store.folder, (0, time.time() - LEFTOVER - 1))
    return store


def test_activations_in_use_are_kept_and_stale_ones_removed(tmp_path: Path) -> None:
    keys = [f"{index:032x}" for index in range(3)]
    in_use, left = cached(tmp_path, keys[0]), cached(tmp_path, keys[1])
    in_use.read("0.2")
    saved(tmp_path, keys[2])
    assert "0.2" in in_use and "0.2" not in left


def test_stale_activations_of_other_runs_can_be_removed_beforehand(tmp_path: Path) -> None:
    own, left = (cached(tmp_path, f"{index:032x}") for index in range(2))
    CheckpointStore(tmp_path, f"{0:032x}").remove_stale_activations()
    assert "0.2" in own and "0.2" not in left


def edited(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """Change the tensors and the header of a state file, and give it the digest that belongs to them."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors, header)
    text = json.dumps(header)
    save_file(tensors, path, {HEADER: text, DIGEST: file_digest(text, tensors)})


def replacing(name: str, value: Any) -> Any:
    """Return a change that sets a tensor of the file to ``value``, or to what that returns for it; None removes it."""

    def change(tensors: dict[str, torch.Tensor], _header: dict[str, Any]) -> None:
        found = value(tensors[name]) if callable(value) else value
        if found is None:
            del tensors[name]
        else:
            tensors[name] = found

    return change


def saying(part: str, **entries: Any) -> Any:
    """Return a change that updates the entries of a part of the header."""
    return lambda _tensors, header: header[part].update(entries)


MOMENT = "optimizer/0/exp_avg"
WRONG = {
    "a moment is missing": replacing(MOMENT, None),
    "a moment of another shape": replacing(MOMENT, torch.zeros(60, 40)),
    "a moment of fewer values": replacing(MOMENT, torch.zeros(1)),
    "a moment of no values": replacing(MOMENT, torch.zeros(0)),
    "a moment of another dtype": replacing(MOMENT, lambda t: t.double()),
    "a moment of integers": replacing(MOMENT, lambda t: t.int()),
    "a moment of NaN": replacing(MOMENT, lambda t: t * torch.nan),
    "an infinite second moment": replacing("optimizer/1/exp_avg_sq", lambda t: t + torch.inf),
    "a negative second moment": replacing("optimizer/1/exp_avg_sq", lambda t: t - 1e6),
    "a parameter of another shape": replacing("parameter/0", torch.zeros(4, 6)),
    "a parameter out of range": replacing("parameter/0", lambda t: t * 1e30),
    "an average of NaN": replacing("average/0", lambda t: t * torch.nan),
    "no average": replacing("average/1", None),
    "updates of half a step": replacing("optimizer/0/step", torch.tensor(1.5)),
    "no updates": replacing("optimizer/0/step", torch.tensor(0.0)),
    "updates beyond the steps": replacing("optimizer/0/step", torch.tensor(1e9)),
    "a step of two values": replacing("optimizer/0/step", torch.ones(2)),
    "no losses": replacing("losses", None),
    "losses in two dimensions": replacing("losses", lambda t: t[None]),
    "losses of another dtype": replacing("losses", lambda t: t.float()),
    "losses of NaN": replacing("losses", lambda t: t * torch.nan),
    "fewer losses": replacing("losses", lambda t: t[1:].clone()),
    "a tensor of another run": replacing("surprise", torch.zeros(1)),
    "a parameter too many": replacing("parameter/3", torch.zeros(1)),
    "moments of no parameter": replacing("optimizer/7/exp_avg", torch.zeros(1)),
    "moments of a name": replacing("optimizer/x/exp_avg", torch.zeros(1)),
    "moments of two names": replacing("optimizer/0/a/b", torch.zeros(1)),
    "an unknown entry": saying("history", surprise=1),
    "a measurement after the end": saying("history", validation=[[0, 1.0], [9, 1.0]]),
    "measurements out of order": saying("history", probes=[[2, 1.0], [0, 1.0]]),
    "a measurement of three": saying("history", validation=[[0, 1.0, 2.0]]),
    "a measurement of text": saying("history", probes=[["0", 1.0]]),
    "more skipped than done": saying("history", skipped=9),
    "checkpointing of text": saying("history", checkpointing="yes"),
    "another precision": lambda _t, header: header.update(scaler={"scale": 1.0, "_growth_tracker": 0}),
    "no history": lambda _t, header: header.pop("history"),
    "a history that is a list": lambda _t, header: header.update(history=[]),
    "another version": lambda _t, header: header.update(version=1),
    **{f"pieces {value!r}": saying("history", pieces=value)
       for value in (0, -1, 2.5, "2", None, True, 2**40, [1])},
    **{f"step {value!r}": saying("history", step=value) for value in (0, 2, 4, -3, 3.0, "3", None, True)},
}  # fmt: skip
"""What a file may hold that no run has written, with a digest that fits it."""


@pytest.mark.parametrize("case", list(WRONG))
def test_a_state_that_no_run_has_written_changes_nothing(tmp_path: Path, case: str, caplog: Any) -> None:
    saved(tmp_path)
    edited(CheckpointStore(tmp_path, "run").path, WRONG[case])
    state, clean = fresh(), fresh()
    assert not CheckpointStore(tmp_path, "run").load(state, 10)
    assert [record.args[0] for record in caplog.records] == [CheckpointStore(tmp_path, "run").path.name]
    same(state, clean)


@pytest.mark.parametrize("entry", [{"scale": 0.0}, {"scale": "1"}, {"_growth_tracker": -1}, {"scale": 1e30}])
def test_a_loss_scale_that_no_run_has_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    state = fresh(half=True)
    train(state, 10, 3)
    CheckpointStore(tmp_path, "run").save(state)
    assert CheckpointStore(tmp_path, "run").load(fresh(half=True), 10)
    edited(CheckpointStore(tmp_path, "run").path, saying("scaler", **entry))
    assert not CheckpointStore(tmp_path, "run").load(fresh(half=True), 10)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_the_state_of_an_optimizer_has_the_shapes_that_files_must_have(optimizer: str) -> None:
    state = fresh(optimizer)
    train(state, 10, 3)
    for index, parameter in enumerate(state.parameters):
        entries = state.optimizer.state_dict()["state"].get(index, {})
        kept = {name: tuple(value.shape) for name, value in entries.items() if isinstance(value, torch.Tensor)}
        assert kept == state_shapes(optimizer, tuple(parameter.shape))
        assert all(value.dtype == torch.float32 for value in entries.values() if isinstance(value, torch.Tensor))


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path)
    path = CheckpointStore(tmp_path, "run").path
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    clean = fresh()
    for position in range(start, len(whole)):
        path.write_bytes(flipped(whole, position, position % 8))
        state = fresh()
        assert not CheckpointStore(tmp_path, "run").load(state, 10), position
    same(state, clean)


def flipped(whole: bytes, position: int, bit: int) -> bytes:
    return whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :]


def test_a_pipe_in_the_place_of_a_state_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(CheckpointStore(tmp_path, "run").path)
    assert not CheckpointStore(tmp_path, "run").load(fresh(), 10)


def test_the_header_of_a_state_file_keeps_its_names(tmp_path: Path) -> None:
    saved(tmp_path)
    with safe_open(CheckpointStore(tmp_path, "run").path, framework="pt") as file:
        header, names = json.loads(file.metadata()[HEADER]), set(file.keys())
    assert header.keys() == {"version", "history", "scaler"}
    assert header["history"].keys() == {
        "step", "validation", "probes", "skipped", "skipped_in_a_row", "pieces", "checkpointing"
    }  # fmt: skip
    assert {"parameter/0", "average/0", "optimizer/0/exp_avg", "losses"} <= names


def test_a_loaded_state_does_not_depend_on_the_file(tmp_path: Path) -> None:
    before, state = saved(tmp_path), fresh()
    assert CheckpointStore(tmp_path, "run").load(state, 10)
    path = CheckpointStore(tmp_path, "run").path
    with open(path, "r+b") as file:
        file.seek(-200, os.SEEK_END)
        file.write(bytes(200))
    same(state, before)


def test_a_state_with_nan_is_never_written(tmp_path: Path) -> None:
    state = saved(tmp_path)
    before = CheckpointStore(tmp_path, "run").path.read_bytes()
    train(state, 10, 5)
    with torch.no_grad():
        state.parameters[0][0, 0] = torch.nan
    CheckpointStore(tmp_path, "run").save(state)
    assert CheckpointStore(tmp_path, "run").path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    states, state = CheckpointStore(tmp_path / "file", "run"), fresh()
    train(state, 10, 3)
    states.save(state)
    assert "step 3" in (states.failure or "")


def test_a_removed_state_is_not_loaded(tmp_path: Path) -> None:
    saved(tmp_path)
    CheckpointStore(tmp_path, "run").forget()
    assert not CheckpointStore(tmp_path, "run").load(fresh(), 10)


def test_a_shorter_run_does_not_replace_the_state_of_a_longer_one(tmp_path: Path) -> None:
    longer, shorter = saved(tmp_path, steps=7), fresh()
    states = CheckpointStore(tmp_path, "run")
    assert not states.load(shorter, 4)
    train(shorter, 10, 4)
    states.save(shorter)
    again = fresh()
    assert CheckpointStore(tmp_path, "run").load(again, 10)
    same(again, longer)
