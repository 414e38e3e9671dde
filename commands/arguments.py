"""Inputs of nodes as command-line arguments, with the names, types, defaults, limits and help of the node's schema."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

TYPES = {"INT": int, "FLOAT": float, "STRING": str, "COMBO": str}
SWITCH = "BOOLEAN"


class NodeArguments:
    """The arguments for a node's widgets; the command itself provides what a graph would connect to its sockets.

    Args:
        node: the node's class.
        without: ids of inputs that get no argument.
        sparse: collect only the arguments that are given, instead of all with their defaults.
        shown: descriptions of the command's own defaults, by input id, where they differ from the node's.
    """

    def __init__(
        self, node: Any, *, without: Collection[str] = (), sparse: bool = False, shown: Mapping[str, str] | None = None
    ):  # fmt: skip
        self._schema, self._sparse, self._shown = node.GET_SCHEMA(), sparse, shown or {}
        self._specs = [
            spec for spec in self._schema.inputs if spec.get_io_type() in {*TYPES, SWITCH} and spec.id not in without
        ]

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add an argument for each input, such as ``--subjects-per-batch``."""
        group = parser.add_argument_group(self._schema.display_name)
        for spec in self._specs:
            settings = _settings(spec, self._sparse, self._shown.get(spec.id))
            group.add_argument(f"--{spec.id.replace('_', '-')}", **settings)

    def of(self, parsed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values by input id.

        Args:
            parsed: the parsed command line by argument name.

        Raises:
            ValueError: a number is outside its input's range.
        """
        values = {spec.id: parsed[spec.id] for spec in self._specs if spec.id in parsed}
        for spec in self._specs:
            if spec.id in values and spec.get_io_type() in ("INT", "FLOAT"):
                _require_in_range(spec, values[spec.id])
        return values


def _settings(spec: Any, sparse: bool, shown: str | None) -> dict[str, Any]:
    """Return the keyword arguments of ``add_argument`` for an input."""
    kind, default = spec.get_io_type(), _default(spec)
    required = default == "" and not spec.optional
    note = "needed" if required else f"default: {shown or repr(default)}"
    settings = {"help": f"{spec.tooltip} ({note})".replace("%", "%%"), "required": required}
    settings["default"] = argparse.SUPPRESS if sparse or required else default
    if kind == SWITCH:
        return {**settings, "action": argparse.BooleanOptionalAction}
    choices = {"choices": list(spec.options)} if kind == "COMBO" else {}
    return {**settings, **choices, "type": TYPES[kind], "metavar": None if choices else kind}


def _default(spec: Any) -> Any:
    """Return the input's default; of a combo without one, its first option."""
    options: Sequence[Any] = spec.options if spec.get_io_type() == "COMBO" else ()
    return options[0] if spec.default is None and options else spec.default


def _require_in_range(spec: Any, value: float) -> None:
    if not spec.min <= value <= spec.max:
        raise ValueError(f"--{spec.id.replace('_', '-')} is {value}; give one from {spec.min} to {spec.max}")
