"""Plans to train within the free memory, chosen on a device that only counts."""

import gc
import logging
import re
import weakref
from typing import Any

import pytest
import torch
from hyperbooth.trainers.engine.memory_plan import MemoryNeeds, MemoryPlan, choose_plan, measure_needs
from hyperbooth.trainers.engine.memory_planner import MemoryPlanner
from torch import nn

NEEDS = MemoryNeeds(fixed=10, inference_bytes=5, kept=100, kept_checkpointed=20)
PLANS = [MemoryPlan(1), MemoryPlan(2), MemoryPlan(3), MemoryPlan(3, True)]


class Device:
    """A device with ``free`` bytes; RuntimeErrors that name memory count as out of memory, as do MemoryErrors."""

    def __init__(self, free: int = 0):
        self.free, self.room = free, []

    def free_memory(self) -> int:
        return self.free

    def make_room(self, needed: int) -> None:
        self.room.append(needed)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, (torch.OutOfMemoryError, MemoryError))


def planner_of(device: Device, **settings: Any) -> MemoryPlanner:
    return MemoryPlanner(
        **{"memory": device, "batch_size": 3, "precision": "float32", "plan": MemoryPlan(), **settings}
    )


def fails_until(least: MemoryPlan | None, tried: list[MemoryPlan], error: type[Exception] = torch.OutOfMemoryError):
    def attempt(plan: MemoryPlan) -> str:
        tried.append(plan)
        if plan != least:
            raise error("no memory")
        return "done"

    return attempt


def test_a_plan_describes_micro_batches_and_checkpointing() -> None:
    figures = [re.findall(r"\d+|\bon\b|\boff\b", plan.describe(3)) for plan in PLANS]
    assert figures == [["3", "off"], ["3", "2", "off"], ["3", "1", "off"], ["3", "1", "on"]]


def test_a_plan_is_tightened_step_by_step() -> None:
    plan = MemoryPlan()
    tightened = [plan] + [plan := plan.tighter(3) for _ in range(3)]
    assert tightened == PLANS and plan.tighter(3) is None
    assert MemoryPlan(3).tighter(3, may_checkpoint=False) is None
    assert [MemoryPlan(n).samples(5) for n in (1, 2, 3, 5)] == [5, 3, 2, 1]


def test_needs_count_the_largest_micro_batch() -> None:
    assert [NEEDS.of(plan, 3) for plan in PLANS] == [10 + 3 * 105, 10 + 2 * 105, 10 + 105, 10 + 25]


@pytest.mark.parametrize(("free", "chosen"), [(400, 0), (300, 1), (200, 2), (100, 3), (0, 3)])
def test_the_first_plan_that_fits_is_chosen(free: int, chosen: int) -> None:
    assert choose_plan(NEEDS, free, 3, MemoryPlan()) == PLANS[chosen]
    assert choose_plan(NEEDS, 10**9, 3, PLANS[2]) == PLANS[2]


def test_measuring_counts_each_saved_tensor_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    x = torch.ones(2, 4, requires_grad=True)
    needs = measure_needs(
        lambda: layer(x).square().sum(),
        blocks=[layer],
        parameters=[layer.weight],
        inference_bytes=7,
        bytes_per_parameter=12,
    )
    assert needs == MemoryNeeds(fixed=12 * 16, inference_bytes=7, kept=64, kept_checkpointed=64)


def test_the_planner_chooses_by_what_was_measured_and_makes_room() -> None:
    device = Device(300)
    planner = planner_of(device)
    planner.choose(lambda: NEEDS)
    assert planner.plan == MemoryPlan(2) and device.room == [220]
    assert "float32" in planner.line and planner.plan.describe(3) in planner.line


def test_a_plan_that_may_not_suffice_is_reported_as_such() -> None:
    planner = planner_of(Device(0))
    planner.choose(lambda: NEEDS)
    sufficient = planner_of(Device(100))
    sufficient.choose(lambda: NEEDS)
    assert planner.plan == sufficient.plan == PLANS[-1]
    assert ["fp8" in one.line for one in (planner, sufficient)] == [True, False]


def test_where_one_sample_does_not_fit_the_tightest_plan_is_chosen() -> None:
    def measure() -> MemoryNeeds:
        raise MemoryError

    planner = planner_of(Device(10**9))
    planner.choose(measure)
    assert planner.plan == PLANS[-1] and PLANS[-1].describe(3) in planner.line
    with pytest.raises(ZeroDivisionError):
        planner.choose(lambda: 1 // 0)


def test_a_plan_kept_as_set_is_neither_measured_nor_tightened() -> None:
    planner = planner_of(Device(), auto=False, plan=MemoryPlan(1, True))
    planner.choose(lambda: pytest.fail("measured"))
    assert MemoryPlan(1, True).describe(3) in planner.line and "(as set)" in planner.line
    tried: list[MemoryPlan] = []
    with pytest.raises(
        torch.OutOfMemoryError, match=r"\bat step 4\b(?!.*_checkpointing).*\bmemory\b.*'auto'.*fewer layers$"
    ):
        planner.run(fails_until(None, tried), advice="fewer layers", where=lambda: "at step 4")
    assert tried == [MemoryPlan(1, True)]
    planner = planner_of(Device(), auto=False)
    with pytest.raises(torch.OutOfMemoryError, match=r"\bmemory\b.*'auto'.*\bgradient_checkpointing\b.*fewer layers$"):
        planner.run(fails_until(None, tried), advice="fewer layers")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_failed_attempts_are_repeated_under_tighter_plans(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    planner, tried = planner_of(Device()), []
    with caplog.at_level(logging.WARNING, logger="hyperbooth"):
        assert planner.run(fails_until(PLANS[2], tried, error), advice="", where=lambda: f"at {len(tried)}") == "done"
    assert tried == PLANS[:3] and planner.plan == PLANS[2]
    assert [record.name for record in caplog.records] == ["hyperbooth"] * 2
    assert "at 2" in caplog.text and PLANS[2].describe(3) in caplog.text
    assert "float32" in planner.line and PLANS[2].describe(3) in planner.line
    assert planner.run(lambda plan: plan, advice="") == PLANS[2], "the next batch starts at the plan of the last"


def test_the_last_plan_failing_ends_the_run_with_advice() -> None:
    tried: list[MemoryPlan] = []
    with pytest.raises(torch.OutOfMemoryError, match=r"^(?!.*'auto').*\bat step 4\b.*fewer layers$"):
        planner_of(Device()).run(fails_until(None, tried), advice="fewer layers", where=lambda: "at step 4")
    assert tried == PLANS
    tried.clear()
    with pytest.raises(torch.OutOfMemoryError):
        planner_of(Device(), may_checkpoint=False).run(fails_until(None, tried), advice="")
    assert tried == PLANS[:3]


def test_other_errors_are_not_repeated() -> None:
    tried: list[MemoryPlan] = []
    with pytest.raises(KeyError):
        planner_of(Device()).run(fails_until(None, tried, KeyError), advice="")
    assert tried == PLANS[:1]


def test_tensors_of_a_failed_attempt_are_freed_before_the_next() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def attempt(plan: MemoryPlan) -> bool:
        if held:
            return held[0]() is None
        activations = torch.ones(8)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError

    gc.disable()
    try:
        assert planner_of(Device()).run(attempt, advice="")
    finally:
        gc.enable()
