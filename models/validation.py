"""What a file says of itself, checked before anything is made of it.

A header is text of strangers: it may be nested a million deep, name a layer twice, or give a size that no memory holds.
Everything that later code relies on is checked here, once.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

LONGEST_TEXT = 2**21
"""Characters of a header; 500 layers take 40,000. What it says takes up to 25 times as much memory."""
MOST_GROUPS = 2**17
"""Lists and mappings in a header: an empty one takes 3 characters there and 80 bytes in memory."""
DEEPEST = 16
"""Levels of a header; ours have five."""
LONGEST_FACT = 10_000
"""Characters of a prompt or a trigger word: more than any encoder reads."""
LONGEST = 500
"""Of a name, in characters; the longest known to us has 90."""
LARGEST_NUMBER = 2**64
LARGEST_WEIGHT = 1e9
"""Of a tensor's numbers: a product of three of them, summed over any rank, is finite in float32."""
NOT_FINITE = f"NaN or infinite values, or such beyond {LARGEST_WEIGHT:.0e}"
LATEST = 2.5e11
"""Seconds; the year 9892. Calendars end soon after."""


def parse_header(text: str) -> Any:
    """The JSON of ``text``, all of whose numbers are finite and below :data:`LARGEST_NUMBER`.

    Raises:
        ValueError: it is none, names a key twice, is nested too deep, or holds half a character (a lone surrogate).
    """
    if len(text) > LONGEST_TEXT or text.count("[") + text.count("{") > MOST_GROUPS:
        raise ValueError(f"has {len(text)} characters; at most {LONGEST_TEXT}, and {MOST_GROUPS} lists, are read")
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    _check_plain(value)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"names {next(name for name in names if names.count(name) > 1)!r:.80} twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= LARGEST_NUMBER:
        raise ValueError(f"holds the number {digits:.30}, larger than 2^64")
    return int(digits)


def _finite(digits: str) -> float:
    if abs(float(digits)) >= LARGEST_NUMBER or float(digits) != float(digits):
        raise ValueError(f"holds the number {digits:.30}; numbers are finite and below 2^64")
    return float(digits)


def _check_plain(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise ValueError(f"is nested deeper than {DEEPEST} levels")
    if isinstance(value, str) and not is_text(value):
        raise ValueError(f"holds half a character in {value!r:.80}")
    if isinstance(value, dict):
        for key in value:
            _check_plain(key, depth + 1)
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            _check_plain(one, depth + 1)


def is_text(value: str) -> bool:
    """Whether ``value`` can be written down: lone surrogates cannot."""
    return not re.search("[\ud800-\udfff]", value)


def tensor_names(file: str, names: Iterable[str]) -> None:
    """ValueError if a tensor's name is none that a message could show."""
    for name in names:
        if not is_name(name):
            raise ValueError(f"{file} holds a tensor named {name!r:.80}, which is no name; save it again")


def is_name(name: str) -> bool:
    """Whether a layer or a tensor can be called that."""
    return 0 < len(name) <= LONGEST and name.isprintable()


def shape_of(sizes: Any, of: str) -> tuple[int, ...]:
    """A shape that a header gives as a list of whole numbers."""
    if not isinstance(sizes, list | tuple) or not all(type(size) is int for size in sizes):
        raise ValueError(f"gives {of:.80} the shape {sizes!r:.80}; expected a list of whole numbers")
    return tuple(sizes)


def checked_tensor(tensor: Tensor, name: str) -> Tensor:
    """The tensor in float32 and memory of its own: the file may be written over while the adapter is in use.

    Raises:
        ValueError: it holds no floating-point numbers, or one is no weight's.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"holds {tensor.dtype} in {name}; an adapter's numbers are floating-point")
    if tensor.numel() == 0:
        raise ValueError(f"holds nothing in {name}, of shape {tuple(tensor.shape)}; save or copy it again")
    own = tensor.to(torch.float32, copy=True)
    if not is_finite(own):
        raise ValueError(f"holds {NOT_FINITE} in {name}; the file is of no use")
    return own


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are below :data:`LARGEST_WEIGHT`; needs no memory of the tensor's size."""
    low, high = torch.aminmax(tensor)
    return bool((low >= -LARGEST_WEIGHT) & (high <= LARGEST_WEIGHT))


def checked_metadata(said: Any) -> dict[str, Any]:
    """What a file says of its making: the facts that reports and other files are made of have the type they need.

    Raises:
        ValueError: one has not; it is named, with what was expected.
    """
    if not isinstance(said, Mapping):
        raise ValueError(f"gives {said!r:.40} for facts; expected names with values")
    for name, value in said.items():
        fits, expected = _FACTS.get(name, _ANYTHING)
        if not fits(value):
            raise ValueError(f"gives {value!r:.60} for {name!r}; expected {expected}")
    for part in said.get("parts", ()):
        checked_metadata(part)
    return dict(said)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < LATEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_FACT


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_sizes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch("[0-9]{1,6}x[0-9]{1,6}", size) and _is_count(count) for size, count in value.items()
    )


def _are_samples(value: Any) -> bool:
    values = [n for record in value for n in record.values()] if _are_records(value) else [None]
    return all(isinstance(some, list) and all(type(n) in (int, float) for n in some) for some in values)


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(record, dict) for record in value)


_Check = tuple[Callable[[Any], bool], str]
_COUNT: _Check = (_is_count, "a whole number")
_TIME: _Check = (_is_time, "seconds since 1970")
_TEXT: _Check = (_is_text, f"a text of at most {LONGEST_FACT} characters")
_ANYTHING: _Check = (lambda value: True, "")
_FACTS: dict[str, _Check] = {
    "base": _TEXT, "prediction": _TEXT, "precision": _TEXT, "loss_weighting": _TEXT, "trigger": _TEXT,
    "steps": _COUNT, "images": _COUNT, "batch_size": _COUNT, "gradient_accumulation": _COUNT, "latent_cell": _COUNT,
    "started": _TIME, "finished": _TIME,
    "made_for": (_are_samples, "records of layers, each with numbers of its weight"),
    "prompts_left_out": _COUNT,
    "held_out": (_is_texts, f"a list of texts of at most {LONGEST_FACT} characters"),
    "prompts": (_is_texts, f"a list of texts of at most {LONGEST_FACT} characters"),
    "latent_sizes": (_are_sizes, "sizes such as '64x96', each with a number of pictures"),
    "parts": (lambda value: isinstance(value, list), "a list of facts, one for each part"),
}  # fmt: skip
"""The facts that code reads; others are kept and shown as they are."""
