"""Validation of the JSON headers and tensors of untrusted files.

A header can be nested a million levels deep, name a layer twice, or declare a size that exceeds all memory. Validation
has two stages. :func:`parse_header` bounds what the JSON text may hold at all: length, depth, magnitude of numbers,
valid Unicode. :func:`validated` then checks the types with a pydantic model, a subclass of :class:`Header`, that names
every entry which the code reads; entries that it does not name are ignored, or kept where the model allows them.

Pydantic reports every fault of a value: a list of 900,000 faults in a header of 2 MiB took 813 MiB of memory. Lists are
therefore declared as :data:`Items`, which stops at the first fault, and a mapping with arbitrary keys is declared as
``dict[str, Any]`` with a validator of its own.
"""

import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import pydantic
import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from torch import Tensor

MAX_HEADER_LENGTH = 2**21
"""Characters of a header; 500 layers take 40,000. The parsed header takes up to 25 times as much memory."""
MAX_CONTAINERS = 2**17
"""Lists and mappings in a header: an empty one takes 3 characters there and 80 bytes in memory."""
MAX_DEPTH = 16
"""Nesting of a header; those written here have five levels."""
MAX_TEXT_LENGTH = 10_000
"""Characters of a prompt or a trigger word: more than any text encoder reads."""
MAX_PROMPT_LENGTH = 5_000
"""Characters of a text that is encoded: CLIP takes 25 MB for each thousand, and no caption is longer."""
MAX_NAME_LENGTH = 500
"""Characters of the name of a layer or tensor; the longest known one has 90."""
MAX_NUMBER = 2**64
"""Bound of the magnitude of a number in a header."""
MAX_WEIGHT = 1e9
"""Bound of the magnitude of a tensor's values: a product of three, summed over any rank, is finite in float32."""
NOT_FINITE = f"NaN or infinite values, or values beyond {MAX_WEIGHT:.0e}"
"""Description of the values that :func:`is_finite` refuses, for messages."""
MAX_TIME = 2.5e11
"""Bound of a time in seconds since 1970; the year 9892. Calendars end soon after."""

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
# Before pydantic 2.8 a list of faults is refused as well, but takes the memory that the module's docstring gives.
Items = Annotated[list[T], pydantic.FailFast() if hasattr(pydantic, "FailFast") else None]
"""A list in a :class:`Header`; its validation ends at the first fault."""
Count = Annotated[int, Field(ge=0)]
Time = Annotated[float, Field(ge=0, lt=MAX_TIME)]
Text = Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]


_SHORT = reprlib.Repr()  # unlike repr(), it builds no text of the value's whole size
_SHORT.maxstring = 60


class Header(BaseModel):
    """Base class of the models of untrusted headers: strict types (True is no integer, "7" no number), immutable."""

    model_config = ConfigDict(strict=True, frozen=True)


def parse_header(text: str) -> Any:
    """Parse JSON whose numbers are all finite and below :data:`MAX_NUMBER`.

    Raises:
        ValueError: ``text`` is no JSON, names a key twice, is nested too deep, or holds invalid Unicode (a lone
            surrogate).
    """
    if len(text) > MAX_HEADER_LENGTH or text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise ValueError(
            f"has {len(text)} characters; at most {MAX_HEADER_LENGTH}, and {MAX_CONTAINERS} lists, are read"
        )
    try:
        value = json.loads(
            text, object_pairs_hook=_unique_keys, parse_int=_integer, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError("is nested too deep") from None
    _check_nested(value)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"names {twice!r:.80} twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= MAX_NUMBER:
        raise ValueError(f"holds the number {digits:.30}, larger than 2^64")
    return int(digits)


def _finite(digits: str) -> float:
    if abs(float(digits)) >= MAX_NUMBER or float(digits) != float(digits):
        raise ValueError(f"holds the number {digits:.30}; numbers are finite and below 2^64")
    return float(digits)


def _check_nested(value: Any, depth: int = 0) -> None:
    """Require valid Unicode and at most :data:`MAX_DEPTH` levels in ``value`` and all that it contains."""
    if depth > MAX_DEPTH:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str) and not is_unicode(value):
        raise ValueError(f"holds invalid Unicode (a lone surrogate) in {value!r:.80}")
    if isinstance(value, dict):
        for key in value:
            _check_nested(key, depth + 1)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_nested(item, depth + 1)


def check_version(header: Any, *known: int) -> None:
    """Require that a parsed header has one of the format versions ``known``, before the rest of it is validated.

    Raises:
        ValueError: it has another version. A header without a version is left to :func:`validated`.
    """
    version = header.get("version", known[0]) if isinstance(header, dict) else known[0]
    if version not in known:
        raise ValueError(
            f"has format version {version!r:.40}, this pack reads {' and '.join(map(str, known))}; update the pack"
        )


def validated(kind: type[M], value: Any) -> M:
    """Return ``value``, parsed JSON, as a model of type ``kind``.

    Raises:
        ValueError: an entry is missing or of another type; the message names the entry, its value and what is expected.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(describe_error(error)) from None  # a chained error would keep the value in memory


def describe_error(error: ValidationError) -> str:
    """Return the first fault as a phrase: ``gives '7' for 'facts.steps'; input should be a valid integer``."""
    fault = error.errors(include_url=False, include_context=False)[0]
    entry = ".".join(map(str, fault["loc"])) or error.title.lower()
    if fault["type"] == "missing":
        return f"lacks {entry!r:.80}"
    expected = fault["msg"].removeprefix("Value error, ")
    return f"gives {_SHORT.repr(fault['input']):.60} for {entry!r:.80}; {expected[0].lower()}{expected[1:]}"


@contextmanager
def error_context(prefix: str, suffix: str = "") -> Iterator[None]:
    """Put ``prefix`` before and ``suffix`` after the message of a ValueError.

    Messages of validation begin with a verb (``holds``, ``lacks``, ``gives``), for the file's name as their prefix.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}{error}{suffix}") from error


def is_unicode(value: str) -> bool:
    """Return whether ``value`` can be encoded: lone surrogates cannot."""
    return not re.search("[\ud800-\udfff]", value)


def check_tensor_names(file: str, names: Iterable[str]) -> None:
    """Raise ValueError if a tensor of ``file`` has a name that a message cannot show."""
    for name in names:
        if not is_name(name):
            raise ValueError(f"{file} holds a tensor named {name!r:.80}, which is no name; save it again")


def is_name(name: str) -> bool:
    """Return whether a layer or a tensor can have this name."""
    return 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable()


def parse_shape(sizes: Any, of: str) -> tuple[int, ...]:
    """Return a shape that a header gives as a list of integers; ``of`` names the tensor for the message."""
    if not isinstance(sizes, list | tuple) or not all(type(size) is int for size in sizes):
        raise ValueError(f"gives {of:.80} the shape {sizes!r:.80}; expected a list of integers")
    return tuple(sizes)


def checked_tensor(tensor: Tensor, name: str) -> Tensor:
    """Return the tensor in float32 in memory of its own: the file may be overwritten while the adapter is in use.

    Raises:
        ValueError: it is empty or not floating-point, or holds values that no weight has (:func:`is_finite`).
    """
    if not tensor.is_floating_point():
        raise ValueError(f"holds {tensor.dtype} in {name}; an adapter's values are floating-point")
    if tensor.numel() == 0:
        raise ValueError(f"holds no values in {name}, of shape {tuple(tensor.shape)}; save or copy it again")
    own = tensor.to(torch.float32, copy=True)
    if not is_finite(own):
        raise ValueError(f"holds {NOT_FINITE} in {name}; the file cannot be used")
    return own


def is_finite(tensor: Tensor, largest: float = MAX_WEIGHT) -> bool:
    """Return whether no value is NaN or infinite, and none has a magnitude above ``largest``.

    Needs no memory of the tensor's size, unlike ``torch.isfinite(tensor).all()``, which takes 250 to 275 MiB for a
    tensor of 100 MiB; only float8, for which torch has no minimum, is converted, a million values at a time.
    """
    if tensor.numel() == 0:
        return True
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return all(is_finite(part.to(torch.float32), largest) for part in tensor.detach().flatten().split(2**20))
    low, high = (limit.item() for limit in torch.aminmax(tensor.detach()))  # both are NaN if one value is
    return -largest <= low and high <= largest and math.isfinite(low) and math.isfinite(high)


def _check_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    for size, count in sizes.items():
        if not re.fullmatch("[0-9]{1,6}x[0-9]{1,6}", size) or type(count) is not int or count < 0:
            raise ValueError(f"expected sizes such as '64x96' with a number of images, not {size!r:.20}: {count!r:.20}")
    return sizes


def _check_number_lists(lists: dict[str, Any]) -> dict[str, Any]:
    for name, values in lists.items():
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"expected names with a list of numbers each, not {name!r:.80}: {values!r:.40}")
    return lists


NumberLists = Annotated[dict[str, Any], AfterValidator(_check_number_lists)]
"""A mapping of names to lists of numbers, such as a fingerprint of the base model: layer -> some of its weights."""


class Metadata(Header, extra="allow"):
    """The entries of an adapter's metadata that code reads; others are kept and shown as they are.

    Args:
        latent_sizes: ``{"64x96": 3}``, width x height of the latents -> number of images.
        latent_cell: pixels per latent pixel.
        made_for: samples of the base model's weights, see :data:`NumberLists`.
        prompts_left_out: number of prompts beyond those in ``prompts``, see :mod:`.metadata.prompt_limits`.
        parts: metadata of the adapters that were combined.
    """

    base: Text = ""
    prediction: Text = ""
    precision: Text = ""
    loss_weighting: Text = ""
    trigger: Text = ""
    steps: Count = 0
    images: Count = 0
    batch_size: Count = 0
    gradient_accumulation: Count = 0
    latent_cell: Count = 0
    latent_sizes: Annotated[dict[str, Any], AfterValidator(_check_sizes)] = {}
    started: Time = 0.0
    finished: Time = 0.0
    made_for: Items[NumberLists] = []
    prompts: Items[Text] = []
    prompts_left_out: Count = 0
    held_out: Items[Text] = []
    parts: Items["Metadata"] = []


def _validate_only(value: Any, validate: ValidatorFunctionWrapHandler) -> dict[str, Any]:
    validate(value)
    return dict(value)


MetadataDict = Annotated[Metadata, WrapValidator(_validate_only)]
"""A field of a :class:`Header` that is validated as :class:`Metadata` and stays a dict in its own order."""


def checked_metadata(metadata: Any) -> dict[str, Any]:
    """Return ``metadata`` in its own order if the entries that code reads have their types, see :class:`Metadata`.

    Raises:
        ValueError: an entry has another type; the message names it, its value and what is expected.
    """
    validated(Metadata, metadata)
    return dict(metadata)
