"""Many small adapters as one tensor: where names would outweigh the numbers.

A LiDB of SD1.5 has 30,000 numbers in 400 tensors, whose names and places would take 60 KB in a safetensors header. In
a file it is two tensors: ``packed [N]``, all adapters' tensors one after the other, in the order of the layers and of
the family's ``tensor_names``; and ``layout``, bytes: deflated JSON that says which layers, with which shapes.

The layout is a tensor, because ComfyUI's loaders of adapters see tensors only.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..adapters.parameter_layout import ParameterLayout
from ..adapters.stack import Adapter
from .layout_json import layout_from_json, layout_to_json

PACKED, LAYOUT = "packed", "layout"
MAX_LAYOUT_BYTES = 1 << 20
"""Bytes of a layout when inflated, which one of a thousandth could fill; 200 layers take 16 KB."""


def pack_adapter(link: Adapter) -> dict[str, Tensor]:
    """``link`` as its two tensors; numbers of adapters stay in the type they have.

    Raises:
        ValueError: there are so many layers that no reader would take the layout.
    """
    layout = ParameterLayout.of(link)
    text = json.dumps(layout_to_json(layout), separators=(",", ":")).encode()
    if len(text) > MAX_LAYOUT_BYTES:
        raise ValueError(
            f"{len(layout.targets)} layers need a layout of {len(text)} bytes; at most {MAX_LAYOUT_BYTES} are read"
        )
    return {
        PACKED: layout.pack(link),
        LAYOUT: torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8),
    }


def unpack_adapter(tensors: Mapping[str, Tensor], prefix: str = "") -> Adapter:
    """The link whose tensors are ``<prefix>packed`` and ``<prefix>layout``; its numbers are float32 of their own.

    Raises:
        ValueError: one is missing, or they do not belong together, or the family reads other numbers in them.
    """
    if missing := [prefix + name for name in (PACKED, LAYOUT) if prefix + name not in tensors]:
        raise ValueError(f"lacks {' and '.join(missing)}; the file is not whole")
    layout, theta = decode_layout(tensors[prefix + LAYOUT]), tensors[prefix + PACKED]
    if theta.ndim != 1:
        raise ValueError(
            f"holds packed numbers of shape {tuple(theta.shape)}, its layout is for {layout.parameter_count}"
        )
    layout.unflatten(theta)
    return layout.unpack(validation.checked_tensor(theta, PACKED))


def decode_layout(tensor: Tensor) -> ParameterLayout:
    """The layout, inflated to at most :data:`MAX_LAYOUT_BYTES` bytes.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise ValueError(f"holds a layout of {tensor.dtype} and shape {tuple(tensor.shape)}; expected bytes in a row")
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(tensor.cpu().numpy().tobytes(), MAX_LAYOUT_BYTES)
        if not inflate.eof or inflate.unused_data:
            raise ValueError(f"it does not end where it should, or holds more than {MAX_LAYOUT_BYTES} bytes")
        said: Any = validation.parse_header(text.decode())
    except (zlib.error, ValueError) as error:
        raise ValueError(f"has a damaged layout ({error!s:.80}); save it again") from error
    return layout_from_json(said)
