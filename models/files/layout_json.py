"""A :class:`~..adapters.parameter_layout.ParameterLayout` as JSON, and the validation of one that a file holds.

``{"version", "family", "facts", "kinds", "layers"}``: ``facts`` are the family's constants, ``kinds`` the distinct lists
``[weight's shape, shape of each tensor ...]``, and ``layers`` maps a layer's name to the index of its kind.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import validation
from ..adapters import FAMILIES
from ..adapters.parameter_layout import ParameterLayout, Shapes, family_with_layout
from ..adapters.targets import Target, targets_from_header
from .family_codecs import PACKED_CODECS

VERSION = 1
MAX_TENSOR_SIZE = 2**48
"""Number of values beyond which a tensor of a layout is refused: torch cannot express shapes of 2^63 values."""


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


def layout_from_json(header: Any) -> ParameterLayout:
    """Return the layout that :func:`layout_to_json` described.

    Whether it means the same here is told by :meth:`~..adapters.parameter_layout.ParameterLayout.check`.

    Raises:
        ValueError: the header is of another version or family, damaged, or asks for bases that no layer has.
    """
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise ValueError(f"has a layout of another version than {VERSION}, which this pack reads; update the pack")
    with _named_as_damaged():
        family, (targets, shapes) = family_with_layout(header["family"]).family, _layers_of(header)
        constants = header["facts"]
        PACKED_CODECS[family].check(constants, [(target.shape, shapes[name]) for name, target in targets.items()])
        return ParameterLayout(family, targets, shapes, constants)


@contextmanager
def _named_as_damaged() -> Iterator[None]:
    """Report what a header lacks, or holds in another form, as a damaged layout."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"has a damaged layout ({error!r:.80}); save it again") from error


def _layers_of(header: Mapping[str, Any]) -> tuple[dict[str, Target], dict[str, Shapes]]:
    """Return the targets, and the shapes of each one's tensors."""
    kinds, kind_of, count = header["kinds"], header["layers"], len(FAMILIES[header["family"]].tensor_names)
    for name, index in kind_of.items():
        if type(index) is not int or not 0 <= index < len(kinds) or len(kinds[index]) != 1 + count:
            raise ValueError(f"has a layout that gives {name!r:.80} the shapes {index!r:.40}; save it again")
    targets = targets_from_header({name: kinds[index][0] for name, index in kind_of.items()})
    shapes = [tuple(validation.parse_shape(shape, "a packed tensor") for shape in kind[1:]) for kind in kinds]
    if any(size < 1 for kind in shapes for shape in kind for size in shape):
        raise ValueError("has a layout with empty tensors; save it again")
    if any(math.prod(shape) > MAX_TENSOR_SIZE for kind in shapes for shape in kind):
        raise ValueError(f"has a layout with a tensor of more than {MAX_TENSOR_SIZE} values; save it again")
    return targets, {name: shapes[index] for name, index in kind_of.items()}
