"""A :class:`~..adapters.parameter_layout.ParameterLayout` as JSON, and the validation of one that a file holds.

``{"version", "family", "facts", "kinds", "layers"}``: ``facts`` are the family's constants, ``kinds`` the distinct
lists ``[weight's shape, shape of each tensor ...]``, and ``layers`` maps a layer's name to the index of its kind.
"""

import math
from typing import Annotated, Any

from pydantic import Field

from ..adapters import FAMILIES
from ..adapters.parameter_layout import ParameterLayout, Shapes, family_with_layout
from ..adapters.targets import Target, targets_from_header
from ..validation import Header, Items, check_version, error_context, validated
from .family_codecs import PACKED_CODECS

VERSION = 1
MAX_TENSOR_SIZE = 2**48
"""Number of values beyond which a tensor of a layout is refused: torch cannot express shapes of 2^63 values."""


class LayoutHeader(Header):
    """The JSON of a layout; names on disk are the aliases."""

    version: int
    family: str
    constants: dict[str, Any] = Field(alias="facts")
    kinds: Items[Items[Items[Annotated[int, Field(ge=1)]]]]
    layers: dict[str, Any]


def layout_to_json(layout: ParameterLayout) -> dict[str, Any]:
    """Return the layout in JSON's types; layers of the same shapes share one entry of ``kinds``."""
    kinds: dict[tuple[Any, ...], int] = {}
    layers = {
        name: kinds.setdefault((target.shape, *layout.shapes[name]), len(kinds))
        for name, target in layout.targets.items()
    }
    return {
        "version": VERSION,
        "family": layout.family,
        "facts": layout.constants,
        "kinds": list(kinds),
        "layers": layers,
    }


def layout_from_json(value: Any) -> ParameterLayout:
    """Return the layout that :func:`layout_to_json` described.

    :meth:`~..adapters.parameter_layout.ParameterLayout.check` tells whether its parameters have the same meaning here.

    Raises:
        ValueError: it is of another version or family, damaged, or declares bases larger than any layer's.
    """
    with error_context("has a layout that "):
        check_version(value, VERSION)
        header = validated(LayoutHeader, value)
    family = family_with_layout(header.family).family
    targets, shapes = _layers_of(header)
    layers = [(target.shape, shapes[name]) for name, target in targets.items()]
    PACKED_CODECS[family].check(header.constants, layers)
    return ParameterLayout(family, targets, shapes, header.constants)


def _layers_of(header: LayoutHeader) -> tuple[dict[str, Target], dict[str, Shapes]]:
    """Return the targets, and the shapes of each one's tensors."""
    kinds, count = header.kinds, len(FAMILIES[header.family].tensor_names)
    for name, index in header.layers.items():
        if type(index) is not int or not 0 <= index < len(kinds) or len(kinds[index]) != 1 + count:
            raise ValueError(
                f"has a layout that gives {index!r:.40} for {name!r:.80}; expected the index of a kind with a weight "
                f"and {count} tensors"
            )
    targets = targets_from_header({name: kinds[index][0] for name, index in header.layers.items()})
    if any(math.prod(shape) > MAX_TENSOR_SIZE for kind in kinds for shape in kind[1:]):
        raise ValueError(f"has a layout with a tensor of more than {MAX_TENSOR_SIZE} values; save it again")
    return targets, {name: tuple(map(tuple, kinds[index][1:])) for name, index in header.layers.items()}
