"""Memory that really runs out: the process may not grow any further.

What earlier tests freed would still be the process's own, and no limit would be met; so these run in a new one.
"""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
from helpers.own_process import alone, run_alone, starts_it
from helpers.reports import mentions, pack_warnings
from helpers.training import QUIET, lora, train, untouched

MIB = 2**20


@starts_it
def test_in_a_process_of_its_own() -> None:
    run_alone(__file__, 2)


@contextmanager
def room(mebibytes: int) -> Iterator[None]:
    """Let the process take at most so much more address space inside the block."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + mebibytes * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def large(subject: Any) -> Any:
    """Return a subject of 384 x 384 pixels, of which a step keeps about 400 MiB per sample."""
    generator = torch.Generator().manual_seed(0)
    examples = tuple(replace(e, latents=torch.randn(1, 4, 48, 48, generator=generator)) for e in subject.examples)
    return replace(subject, examples=examples)


@alone
def test_out_of_memory_names_the_remedy_and_leaves_the_model_usable(
    node: Any, loaded: Any, subject: Any, large: Any
) -> None:
    train(node, loaded, subject, lora(), 1)
    with untouched(loaded[0]):
        with room(60), pytest.raises(torch.OutOfMemoryError) as caught:
            train(node, loaded, large, lora(), 2, options=replace(QUIET, memory="as set"))
        assert re.search(r"\bstep 1\b.*\bgradient_checkpointing\b", str(caught.value))
        with room(60), pytest.raises(torch.OutOfMemoryError, match=r"\bresolution\b.*\bSubject\b"):
            train(node, loaded, large, lora(), 2)
    again, _, _ = train(node, loaded, subject, lora(), 2, resume="start over")
    assert all(torch.isfinite(p).all() for p in again.parameters())


@alone
def test_a_run_that_does_not_fit_goes_on_with_less(node: Any, loaded: Any, large: Any, caplog: Any) -> None:
    """The plan cannot see this limit, so the run meets it, and takes the next plan by itself.

    A step takes between 360 and 420 MiB, with checkpointing between 120 and 180.
    """
    tight = replace(QUIET, memory="as set", gradient_checkpointing=True)
    expected = [train(node, loaded, large, lora(), 1, batch_size=1, options=tight, resume="start over")[0]]
    with untouched(loaded[0]), room(270):
        adapter, _, report = train(node, loaded, large, lora(), 1, batch_size=1, resume="start over")
    assert any(mentions(message, "step 1") for message in pack_warnings(caplog))
    assert re.search(r"batch 1, checkpointing on$", report, re.M)
    for a, b in zip(adapter.parameters(), expected[0].parameters(), strict=True):
        assert torch.equal(a, b)
