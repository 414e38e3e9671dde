"""The base class of the pack's nodes: their inputs are checked, and PyTorch's global settings are the usual ones.

ComfyUI checks the values that are typed into widgets. Values that come by a link, and programs that call a node
directly, reach it unchecked: an infinite guidance scale, a negative resolution, an unknown choice, a text of a million
characters.
"""

import math
from functools import wraps
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io

from ...models.validation import MAX_PROMPT_LENGTH, is_unicode
from ...trainers.torch_globals import pinned_globals

FILES = ("adapter_name", "hypernetwork_name", "bank_name", "dino", "clip")
"""Inputs whose choices are files and folders, which come and go."""
NUMBERS: dict[str, type] = {"INT": Integral, "FLOAT": Real}
"""Kind of input -> its values; numpy's numbers, which other packs' nodes give, are among them."""
MAX_LINES_LENGTH = 2**20
"""Characters of a text with a line for each image or adapter; each line has at most MAX_PROMPT_LENGTH."""


class Node(io.ComfyNode):
    """A node whose ``execute`` gets only values that its schema allows.

    Raises:
        ValueError: an input's value is of another type, not finite, out of range, not among the choices, or too long;
            the message names the input, the value and what is expected.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own = vars(cls).get("execute")
        if own is not None and not hasattr(own.__func__, "__wrapped__"):  # ComfyUI makes locked copies of the classes
            cls.execute = classmethod(_checked(own.__func__))


def _checked(execute: Any) -> Any:
    """Return the function with a check of its keyword arguments before it."""

    @wraps(execute)
    def run(cls: Any, *args: Any, **inputs: Any) -> Any:
        schema = cls.define_schema()  # GET_SCHEMA would write to ComfyUI's locked copy of the class
        for spec in schema.inputs:
            if spec.id in inputs:
                given = inputs[spec.id]
                for value in given if schema.is_input_list and isinstance(given, list) else [given]:
                    check_value(spec, value)
        with pinned_globals():
            return execute(cls, *args, **inputs)

    return run


def check_value(spec: Any, value: Any) -> None:
    """Require a value that an input of a schema takes; inputs of sockets are left to the node.

    Raises:
        ValueError: see :class:`Node`.
    """
    kind = spec.get_io_type()
    if value is None and spec.optional:
        return
    if kind in NUMBERS:
        _check_number(spec, value, NUMBERS[kind])
    elif kind == "BOOLEAN":
        _require(spec, isinstance(value, bool), value, "true or false")
    elif kind == "STRING":
        _check_text(spec, value)
    elif kind == "COMBO":
        _check_choice(spec, value)


def _check_number(spec: Any, value: Any, kind: type) -> None:
    number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    low, high = (-math.inf if spec.min is None else spec.min), (math.inf if spec.max is None else spec.max)
    what = "an integer" if kind is Integral else "a number"
    _require(spec, number and low <= value <= high, value, f"{what} from {low} to {high}")


def _check_text(spec: Any, value: Any) -> None:
    _require(spec, isinstance(value, str), value, "a text")
    _require(spec, is_unicode(value), value, "valid Unicode; this holds a lone surrogate")
    longest = max(map(len, value.splitlines()), default=0)
    if longest > MAX_PROMPT_LENGTH or len(value) > MAX_LINES_LENGTH:
        raise ValueError(
            f"{spec.id} has {len(value)} characters, {longest} of them in one line; give at most {MAX_PROMPT_LENGTH} "
            "in a line"
        )


def _check_choice(spec: Any, value: Any) -> None:
    """Require a choice; of files, which are looked for when they are needed, only a text."""
    _require(spec, isinstance(value, str) and is_unicode(value) and len(value) <= MAX_PROMPT_LENGTH, value, "a choice")
    options = [str(getattr(option, "value", option)) for option in spec.options or ()]
    if spec.id not in FILES:
        _require(spec, value in options, value, f"one of {', '.join(map(repr, options[:20]))}")


def _require(spec: Any, holds: bool, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{spec.id} is {value!r:.60}; expected {expected}")
