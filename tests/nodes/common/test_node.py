"""Every input of every node: what its schema does not allow is refused by its name, before anything is done."""

import math
from typing import Any

import numpy as np
import pytest
from hyperbooth.nodes.common.node import FILES, check_value

from tools.comfy_harness.call_node import node_classes

LONG = "x" * 10_000


def wrong_values(spec: Any) -> list[Any]:
    """Return values of an input that its schema does not allow."""
    kind = spec.get_io_type()
    if kind in ("INT", "FLOAT"):
        beyond = [spec.min - 1, spec.max + 1] if spec.min is not None and spec.max is not None else []
        fraction = [1.5] if kind == "INT" else []
        return [*beyond, *fraction, math.nan, math.inf, -math.inf, True, "1", [1], {}]
    if kind == "BOOLEAN":
        return [1, 0.0, "true", [True], math.nan]
    if kind == "STRING":
        return [1, 1.5, True, {"a": 1}, "lone \ud800 surrogate", LONG]
    if kind == "COMBO":
        return [1, math.nan, True, {}, "no such choice", "\ud800", LONG]
    return []


def allowed_values(spec: Any) -> list[Any]:
    """Return values at the ends of what an input's schema allows."""
    kind = spec.get_io_type()
    if kind in ("INT", "FLOAT"):
        return [spec.default, spec.min, spec.max]
    if kind == "BOOLEAN":
        return [True, False]
    return [spec.default or "a"] if kind == "STRING" else []


@pytest.fixture(scope="session")
def inputs() -> list[tuple[Any, Any]]:
    """Return every widget of the pack with its node."""
    widgets = ("INT", "FLOAT", "BOOLEAN", "STRING", "COMBO")
    return [
        (node, spec)
        for node in node_classes().values()
        for spec in node.GET_SCHEMA().inputs
        if spec.get_io_type() in widgets
    ]


def given(node: Any, value: Any) -> Any:
    return [value] if node.GET_SCHEMA().is_input_list else value


def test_what_a_schema_does_not_allow_is_refused_by_the_inputs_name(inputs: list[tuple[Any, Any]]) -> None:
    tried = 0
    for node, spec in inputs:
        for value in wrong_values(spec):
            if value == "no such choice" and spec.id in FILES:
                continue
            with pytest.raises(ValueError, match=rf"^{spec.id}\b") as caught:
                node.execute(**{spec.id: given(node, value)})
            assert len(str(caught.value)) < 1000, (node, spec.id)
            tried += 1
    assert tried > 1000 and len({node for node, _ in inputs}) > 20


def test_a_text_may_have_a_line_for_each_of_many_images(inputs: list[tuple[Any, Any]]) -> None:
    """Subject takes such captions, and Compare Sheet such labels."""
    spec = next(spec for _, spec in inputs if spec.id == "captions" and spec.get_io_type() == "STRING")
    check_value(spec, "\n".join(["a photo of sks dog in the snow"] * 1000))
    for text in ("x" * 5001, "x\n" * 2**20):
        with pytest.raises(ValueError, match=rf"^captions .*\b{len(text)}\b"):
            check_value(spec, text)


def test_numbers_of_numpy_are_numbers(inputs: list[tuple[Any, Any]]) -> None:
    for _, spec in inputs:
        if spec.get_io_type() == "INT":
            check_value(spec, np.int64(spec.default))
        if spec.get_io_type() == "FLOAT":
            check_value(spec, np.float64(spec.default))


def test_what_a_schema_allows_is_taken(inputs: list[tuple[Any, Any]]) -> None:
    for _, spec in inputs:
        for value in allowed_values(spec):
            check_value(spec, value)
