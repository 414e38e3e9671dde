"""What a file says of itself is believed only so far."""

import json
from typing import Any

import pytest
import torch
from hyperbooth.models import validation
from hyperbooth.models.adapters.targets import LARGEST, Target, targets_from_header
from hyperbooth.models.validation import (
    LARGEST_WEIGHT,
    LONGEST,
    LONGEST_TEXT,
    MOST_GROUPS,
    checked_metadata,
    checked_tensor,
    parse_header,
)
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e18, 1e18) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_plain_json_is_read_as_it_is(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse_header(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("NaN", "holds the number NaN"),
        ("[-Infinity]", "holds the number -Infinity"),
        ("1e999", "holds the number 1e999"),
        ("1" * 5000, "holds the number 1{30}, larger than 2"),
        (str(2**64), "holds the number 18446744073709551616"),
        ('{"a": 1, "b": 2, "a": 3}', "names 'a' twice"),
        ('["\\udc00"]', "holds half a character"),
        ('{"\\udc00": 1}', "holds half a character"),
        ("[" * 100_000, "too deep"),
        ("[" * 20 + "]" * 20, "deeper than 16 levels"),
        (f'"{"x" * LONGEST_TEXT}"', f"has {LONGEST_TEXT + 2} characters; at most {LONGEST_TEXT}"),
        ("[" + "[]," * MOST_GROUPS + "1]", f"{MOST_GROUPS} lists, are read"),
    ],
)  # fmt: skip
def test_what_no_writer_writes_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_header(text)


def test_numbers_are_float32_of_their_own() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.float32):
        given = torch.ones(3, dtype=dtype)
        own = checked_tensor(given, "x")
        assert own.dtype == torch.float32 and own.tolist() == [1, 1, 1] and own.data_ptr() != given.data_ptr()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.int64), "holds torch.int64 in x"),
        (torch.ones(2, dtype=torch.bool), "holds torch.bool in x"),
        (torch.ones(2, dtype=torch.complex64), "holds torch.complex64 in x"),
        (torch.ones(0, 3), r"holds nothing in x, of shape \(0, 3\)"),
        (torch.tensor([1.0, torch.nan]), "holds NaN or infinite values.* in x"),
        (torch.tensor([-torch.inf]), "holds NaN or infinite values.* in x"),
        (torch.tensor([1e300], dtype=torch.float64), "holds NaN or infinite values.* in x"),
        (torch.tensor([-2 * LARGEST_WEIGHT]), r"or such beyond 1e\+09 in x"),
    ],
)
def test_what_is_no_weight_is_refused(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_tensor(tensor, "x")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", "7", "a whole number"),
        ("steps", -1, "a whole number"),
        ("images", True, "a whole number"),
        ("batch_size", 1.5, "a whole number"),
        ("base", ["SD15"], "a text"),
        ("trigger", None, "a text"),
        ("trigger", "x" * 10_001, "a text of at most 10000 characters"),
        ("prompts", "a dog", "a list of texts"),
        ("prompts", [["a dog"]], "a list of texts"),
        ("started", 1e18, "seconds since 1970"),
        ("finished", "now", "seconds since 1970"),
        ("latent_sizes", {"64 x 64": 1}, "sizes such as '64x96'"),
        ("latent_sizes", {"64x64": "1"}, "sizes such as '64x96'"),
        ("parts", {"steps": 1}, "a list of facts"),
    ],
)
def test_facts_that_code_reads_have_their_type(name: str, value: Any, expected: str) -> None:
    for said in ({name: value}, {"parts": [{name: value}]}):
        with pytest.raises(ValueError, match=rf"gives .* for '{name}'; expected {expected}"):
            checked_metadata(said)
    assert checked_metadata({"anything else": value}) == {"anything else": value}


@pytest.mark.parametrize("said", [None, [], "x", {"parts": ["x"]}])
def test_facts_are_names_with_values(said: Any) -> None:
    with pytest.raises(ValueError, match="for facts; expected names with values"):
        checked_metadata(said)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "for targets; expected layers"),
        (["a"], "for targets; expected layers"),
        ({"a": "64"}, "gives a the shape '64'; expected a list of whole numbers"),
        ({"a": [4.0, 4]}, "expected a list of whole numbers"),
        ({"a": [True, 4]}, "expected a list of whole numbers"),
        ({"a": [4]}, r"shape \(4,\); expected \(out, in\)"),
        ({"a": [4, 4, 4]}, r"expected \(out, in\) or \(out, in, kh, kw\)"),
        ({"a": [4, 0]}, "each from 1 to"),
        ({"a": [4, -4]}, "each from 1 to"),
        ({"a": [4, LARGEST + 1]}, f"each from 1 to {LARGEST}"),
        ({"": [4, 4]}, "'' is no layer's name"),
        ({"a\n": [4, 4]}, r"'a\\n' is no layer's name"),
        ({"a" * (LONGEST + 1): [4, 4]}, f"is no layer's name; names have 1 to {LONGEST}"),
    ],
)
def test_targets_are_layers(entries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        targets_from_header(entries)


def test_good_targets_are_taken() -> None:
    assert targets_from_header({"a": [4, 3], "b": [4, 3, 1, 2]}) == {
        "a": Target("a", (4, 3)),
        "b": Target("b", (4, 3, 1, 2)),
    }
    validation.tensor_names("x.safetensors", ["a.lora_up.weight", "1/ä"])
    with pytest.raises(ValueError, match=r"x\.safetensors holds a tensor named 'a\\x00'"):
        validation.tensor_names("x.safetensors", ["a\0"])
