"""Run hashes: equal for equal values, different for any other."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from hyperbooth.trainers.engine.run_hash import run_hash, sample_values
from hypothesis import given
from hypothesis import strategies as st

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@dataclass(frozen=True)
class Thing:
    tensor: torch.Tensor
    name: str = ""


@given(PLAIN, PLAIN)
def test_equal_values_have_equal_hashes_and_others_do_not(a: Any, b: Any) -> None:
    assert run_hash(a) == run_hash(a)
    assert (run_hash(a) == run_hash(b)) == (repr(a) == repr(b) or _same(a, b))


def _same(a: Any, b: Any) -> bool:
    """Return whether two values are equal and of one kind, whatever the order of keys."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def test_every_bit_of_a_tensor_and_its_dtype_is_hashed() -> None:
    thing = Thing(torch.zeros(3, 4))
    changed = torch.zeros(3, 4)
    changed[2, 3] = 1e-30
    names = [thing, replace(thing, tensor=changed), Thing(torch.zeros(4, 3)), Thing(torch.zeros(3, 4).half())]
    names += [replace(thing, name="a"), thing.tensor]
    assert len({run_hash(name) for name in names}) == len(names)
    assert run_hash(["a;str:'b"]) != run_hash(["a", "b"]) and run_hash("a", "b") != run_hash("a;str:b")
    with torch.inference_mode():
        assert run_hash(Thing(torch.zeros(3, 4))) == run_hash(thing)


def test_samples_hold_both_ends() -> None:
    large = torch.arange(100_000)
    taken = sample_values(large)
    assert taken[0] == 0 and taken[-1] == 99_999 and len(taken) == 256
    assert torch.equal(sample_values(torch.arange(200)), torch.arange(200))
