"""Headers and tensors of untrusted files are validated before use."""

import json
import time
import tracemalloc
from typing import Any

import pytest
import torch
from helpers.allocations import LargestTensor
from hyperbooth.models import validation
from hyperbooth.models.adapters.targets import MAX_SIZE, Target, targets_from_header
from hyperbooth.models.validation import (
    MAX_CONTAINERS,
    MAX_HEADER_LENGTH,
    MAX_NAME_LENGTH,
    MAX_WEIGHT,
    Header,
    check_version,
    checked_metadata,
    checked_tensor,
    is_finite,
    parse_header,
    validated,
)
from hypothesis import given
from hypothesis import strategies as st

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e18, 1e18) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_plain_json_is_parsed_unchanged(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse_header(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "char 0"),
        ("NaN", r"\bNaN\b"),
        ("[-Infinity]", "-Infinity"),
        ("1e999", "1e999"),
        ("1" * 5000, r"\b1{30}\b"),
        (str(2**64), str(2**64)),
        ('{"a": 1, "b": 2, "a": 3}', "'a'"),
        ('["\\udc00"]', "Unicode"),
        ('{"\\udc00": 1}', "Unicode"),
        ("[" * 100_000, r"\bdeep\b"),
        ("[" * 20 + "]" * 20, r"\b16\b"),
        (f'"{"x" * MAX_HEADER_LENGTH}"', rf"\b{MAX_HEADER_LENGTH + 2}\b.*\b{MAX_HEADER_LENGTH}\b"),
        ("[" + "[]," * MAX_CONTAINERS + "1]", rf"\b{3 * MAX_CONTAINERS + 3}\b.*\b{MAX_CONTAINERS}\b"),
    ],
)  # fmt: skip
def test_invalid_headers_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_header(text)


def test_tensors_are_copied_as_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.float32):
        given = torch.ones(3, dtype=dtype)
        own = checked_tensor(given, "x")
        assert own.dtype == torch.float32 and own.tolist() == [1, 1, 1] and own.data_ptr() != given.data_ptr()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.int64), r"torch\.int64.*\bx\b"),
        (torch.ones(2, dtype=torch.bool), r"torch\.bool.*\bx\b"),
        (torch.ones(2, dtype=torch.complex64), r"torch\.complex64.*\bx\b"),
        (torch.ones(0, 3), r"\bx\b.*\(0, 3\)"),
        (torch.tensor([1.0, torch.nan]), r"\bNaN\b.*\bx\b"),
        (torch.tensor([-torch.inf]), r"\binfinite\b.*\bx\b"),
        (torch.tensor([1e300], dtype=torch.float64), r"1e\+09.*\bx\b"),
        (torch.tensor([-2 * MAX_WEIGHT]), r"1e\+09.*\bx\b"),
    ],
)
def test_invalid_tensors_are_refused(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_tensor(tensor, "x")


@pytest.mark.parametrize(
    ("dtype", "value", "finite"),
    [
        *((dtype, value, False) for dtype in FLOATS for value in (torch.nan, torch.inf, -torch.inf)),
        *((dtype, 3.0, True) for dtype in (*FLOATS, torch.bool, torch.uint8, torch.int64)),
        (torch.float32, 2 * MAX_WEIGHT, False),
        (torch.int64, -2 * MAX_WEIGHT, False),
    ],
)
def test_finite_tensors_are_told_from_others(dtype: torch.dtype, value: float, finite: bool) -> None:
    tensor = torch.tensor([1.0, value, 2.0], dtype=torch.float64).to(dtype)
    assert is_finite(tensor) == is_finite(tensor[1]) == is_finite(tensor.repeat(2, 1).mT) == finite
    assert is_finite(tensor, largest=float("inf")) == (value == value and abs(value) < float("inf"))
    assert is_finite(tensor[:0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.float8_e4m3fn])
def test_the_check_for_finite_values_copies_no_tensor(dtype: torch.dtype) -> None:
    tensor = torch.ones(3 * 2**20).to(dtype)
    with LargestTensor() as largest:
        assert is_finite(tensor)
    assert 0 < largest.values <= (2**20 if dtype == torch.float8_e4m3fn else 1)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", "7", "integer"),
        ("steps", -1, "0"),
        ("images", True, "integer"),
        ("batch_size", 1.5, "integer"),
        ("base", ["SD15"], "string"),
        ("trigger", None, "string"),
        ("trigger", "x" * 10_001, "10000"),
        ("prompts", "a dog", "list"),
        ("prompts", [["a dog"]], "string"),
        ("started", 1e18, "250000000000"),
        ("finished", "now", "number"),
        ("latent_sizes", {"64 x 64": 1}, "64x96"),
        ("latent_sizes", {"64x64": "1"}, "64x96"),
        ("made_for", [{"a": [1, "2"]}], "'a'"),
        ("made_for", [{"a": 1}], "'a'"),
        ("made_for", [[1]], "dictionary"),
        ("parts", {"steps": 1}, "list"),
    ],
)
def test_metadata_that_code_reads_is_of_its_type(name: str, value: Any, expected: str) -> None:
    for metadata, entry in (({name: value}, name), ({"parts": [{}, {name: value}]}, rf"parts\.1\.{name}")):
        with pytest.raises(ValueError, match=rf"'{entry}(\.0)?'.*{expected}"):
            checked_metadata(metadata)
    assert checked_metadata({"anything else": value}) == {"anything else": value}


@pytest.mark.parametrize("metadata", [None, [], "x", {"parts": ["x"]}])
def test_metadata_is_a_mapping(metadata: Any) -> None:
    with pytest.raises(ValueError, match="dictionary"):
        checked_metadata(metadata)


def test_metadata_keeps_its_order() -> None:
    metadata = {"zebra": None, "steps": 1, "base": "SD15", "apple": [1], "made_for": [{"a": [1, 2.5]}]}
    assert list(checked_metadata(metadata).items()) == list(metadata.items())


@pytest.mark.parametrize("metadata", [{"held_out": [1] * 900_000}, {"parts": [1] * 900_000},
                                      {"made_for": [{f"{i:06}": 1 for i in range(180_000)}]}])  # fmt: skip
def test_faults_are_not_collected(metadata: Any) -> None:
    """Pydantic's own list took 813 MiB for the first of them."""
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"'{next(iter(metadata))}"):
        checked_metadata(metadata)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


def test_versions_come_first() -> None:
    check_version({"version": 2}, 2, 3)
    check_version({}, 2)
    check_version([], 2)
    with pytest.raises(ValueError, match=r"\bversion 9\b.*\b2\b.*\b3\b"):
        check_version({"version": 9}, 2, 3)


def test_missing_entries_are_named() -> None:
    class Sample(Header):
        width: int

    assert validated(Sample, {"width": 3, "other": None}) == Sample(width=3)
    with pytest.raises(ValueError, match="'width'"):
        validated(Sample, {"height": 3})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, r"\{\}.*targets"),
        (["a"], r"\['a'\].*targets"),
        ({"a": "64"}, r"\ba\b.*'64'.*integers"),
        ({"a": [4.0, 4]}, r"\ba\b.*\[4\.0, 4\].*integers"),
        ({"a": [True, 4]}, r"\ba\b.*\[True, 4\].*integers"),
        ({"a": [4]}, r"\(4,\).*\(out, in\)"),
        ({"a": [4, 4, 4]}, r"\(4, 4, 4\).*\(out, in, kh, kw\)"),
        ({"a": [4, 0]}, rf"\(4, 0\).*\b1\b.*\b{MAX_SIZE}\b"),
        ({"a": [4, -4]}, rf"\(4, -4\).*\b1\b.*\b{MAX_SIZE}\b"),
        ({"a": [4, MAX_SIZE + 1]}, rf"\(4, {MAX_SIZE + 1}\).*\b{MAX_SIZE}\b"),
        ({"": [4, 4]}, rf"''.*\b{MAX_NAME_LENGTH}\b"),
        ({"a\n": [4, 4]}, rf"'a\\n'.*\b{MAX_NAME_LENGTH}\b"),
        ({"a" * (MAX_NAME_LENGTH + 1): [4, 4]}, rf"'a{{9,}}.*\b{MAX_NAME_LENGTH}\b"),
    ],
)
def test_invalid_targets_are_refused(entries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        targets_from_header(entries)


def test_valid_targets_are_parsed() -> None:
    assert targets_from_header({"a": [4, 3], "b": [4, 3, 1, 2]}) == {
        "a": Target("a", (4, 3)),
        "b": Target("b", (4, 3, 1, 2)),
    }
    validation.check_tensor_names("x.safetensors", ["a.lora_up.weight", "1/ä"])
    with pytest.raises(ValueError, match=r"x\.safetensors.*'a\\x00'"):
        validation.check_tensor_names("x.safetensors", ["a\0"])


def test_a_key_that_is_there_twice_among_many_is_found_at_once() -> None:
    """It took 8 seconds for 20,000 keys, and minutes for a header of 2 MiB."""
    text = "{" + "".join(f'"{number}":1,' for number in range(100_000)) + '"7":1}'
    start = time.monotonic()
    with pytest.raises(ValueError, match="'7'"):
        parse_header(text)
    assert time.monotonic() - start < 2
