"""Inputs of nodes as arguments of a command: names, types, defaults, limits and help are the schema's own."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

TYPES = {"INT": int, "FLOAT": float, "STRING": str, "COMBO": str}
SWITCH = "BOOLEAN"


class NodeArguments:
    """The inputs of a node that are widgets; what comes through a socket is the command's to provide.

    Args:
        node: the node's class.
        without: ids of inputs that the command leaves at their defaults.
        sparse: collect only what is given, instead of all with the defaults.
        shown: defaults in words, by the inputs' ids, where the command has others than the node.
    """

    def __init__(
        self, node: Any, without: Collection[str] = (), sparse: bool = False, shown: Mapping[str, str] | None = None
    ):  # fmt: skip
        self._schema, self._sparse, self._shown = node.GET_SCHEMA(), sparse, shown or {}
        self._specs = [
            spec for spec in self._schema.inputs if spec.get_io_type() in {*TYPES, SWITCH} and spec.id not in without
        ]

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """An argument for each: ``--subjects-per-batch``."""
        group = parser.add_argument_group(self._schema.display_name)
        for spec in self._specs:
            settings = _settings(spec, self._sparse, self._shown.get(spec.id))
            group.add_argument(f"--{spec.id.replace('_', '-')}", **settings)

    def of(self, parsed: Mapping[str, Any]) -> dict[str, Any]:
        """By the inputs' ids.

        Raises:
            ValueError: a number is out of its input's range.
        """
        values = {spec.id: parsed[spec.id] for spec in self._specs if spec.id in parsed}
        for spec in self._specs:
            if spec.id in values and spec.get_io_type() in ("INT", "FLOAT"):
                _check_range(spec, values[spec.id])
        return values


def _settings(spec: Any, sparse: bool, shown: str | None) -> dict[str, Any]:
    """For argparse."""
    kind, default = spec.get_io_type(), _default(spec)
    needed = default == "" and not spec.optional
    said = "needed" if needed else f"default: {shown or repr(default)}"
    settings = {"help": f"{spec.tooltip} ({said})".replace("%", "%%"), "required": needed}
    settings["default"] = argparse.SUPPRESS if sparse or needed else default
    if kind == SWITCH:
        return {**settings, "action": argparse.BooleanOptionalAction}
    choices = {"choices": list(spec.options)} if kind == "COMBO" else {}
    return {**settings, **choices, "type": TYPES[kind], "metavar": None if choices else kind}


def _default(spec: Any) -> Any:
    """What the input shows at first."""
    options: Sequence[Any] = spec.options if spec.get_io_type() == "COMBO" else ()
    return options[0] if spec.default is None and options else spec.default


def _check_range(spec: Any, value: float) -> None:
    if not spec.min <= value <= spec.max:
        raise ValueError(f"--{spec.id.replace('_', '-')} is {value}; give one from {spec.min} to {spec.max}")
