"""Inputs of nodes that take lists."""

from typing import Any

from torch import Tensor


def unbatch(batches: list[Tensor]) -> list[Tensor]:
    """A list of batches -> a list of single pictures or masks."""
    return [picture for batch in batches for picture in batch]


def single_value(name: str, values: list[Any], hint: str = "") -> Any:
    """The one value of an input that does not take a list.

    Args:
        hint: what to do with several, if there is a way.

    Raises:
        ValueError: a list with several is connected, of which all but the first would be lost.
    """
    if any(value is not values[0] and value != values[0] for value in values[1:]):
        raise ValueError(f"{name} received {len(values)} different values; connect one{hint and '; '}{hint}")
    return values[0]
