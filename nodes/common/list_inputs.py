"""Values of inputs for nodes whose inputs are lists (``is_input_list``)."""

from typing import Any

from torch import Tensor


def unbatch(batches: list[Tensor]) -> list[Tensor]:
    """Split a list of batches ``[B, ...]`` into a list of single images or masks."""
    return [image for batch in batches for image in batch]


def single_value(name: str, values: list[Any], hint: str = "") -> Any:
    """Return the value of an input that takes a single one.

    Args:
        name: the input's name, for the message.
        values: its list of values, as ComfyUI passes it; all must be equal.
        hint: how several values can be given instead, if there is a way.

    Raises:
        ValueError: the values differ, so all but the first would be ignored.
    """
    if any(value is not values[0] and value != values[0] for value in values[1:]):
        raise ValueError(f"{name} received {len(values)} different values; connect one{hint and '; '}{hint}")
    return values[0]
