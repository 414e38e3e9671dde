"""Packing: the many small tensors of one adapter as one tensor and a layout, where names would outweigh the values.

A LiDB of SD1.5 has 30,000 parameters in 400 tensors, whose names and offsets would take 60 KB in a safetensors header.
A file keeps it as two tensors: ``packed [N]``, the tensors of all layers one after the other, in the order of the
layers and of the family's ``tensor_names``; and ``layout``, bytes: deflated JSON of the layers and shapes, see
:mod:`.layout_json`. The layout is a tensor because ComfyUI's loaders of adapters see tensors only.
"""

import json
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .. import validation
from ..adapters.parameter_layout import ParameterLayout
from ..adapters.stack import Adapter
from .layout_json import layout_from_json, layout_to_json

PACKED, LAYOUT = "packed", "layout"
MAX_LAYOUT_BYTES = 1 << 20
"""Bytes of an inflated layout; deflate can expand a thousandfold. 200 layers take 16 KB."""


def pack_adapter(adapter: Adapter) -> dict[str, Tensor]:
    """Return the two tensors of ``adapter``; the values keep their dtype.

    Raises:
        ValueError: the adapter has more layers than a layout that is read may describe.
    """
    layout = ParameterLayout.of(adapter)
    text = json.dumps(layout_to_json(layout), separators=(",", ":")).encode()
    if len(text) > MAX_LAYOUT_BYTES:
        raise ValueError(
            f"{len(layout.targets)} layers need a layout of {len(text)} bytes; at most {MAX_LAYOUT_BYTES} are read"
        )
    return {
        PACKED: layout.pack(adapter),
        LAYOUT: torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8),
    }


def unpack_adapter(tensors: Mapping[str, Tensor], prefix: str = "") -> Adapter:
    """Return the adapter of the tensors ``<prefix>packed`` and ``<prefix>layout``, in float32 in memory of its own.

    Raises:
        ValueError: a tensor is missing or damaged, the two do not fit each other, or the layout gives the parameters
            another meaning here (other random bases).
    """
    if missing := [prefix + name for name in (PACKED, LAYOUT) if prefix + name not in tensors]:
        raise ValueError(f"lacks {' and '.join(missing)}; the file is not whole")
    layout, theta = decode_layout(tensors[prefix + LAYOUT]), tensors[prefix + PACKED]
    if theta.ndim != 1:
        raise ValueError(
            f"holds packed values of shape {tuple(theta.shape)}, its layout is for {layout.parameter_count}"
        )
    layout.unflatten(theta)
    return layout.unpack(validation.checked_tensor(theta, PACKED))


def decode_layout(tensor: Tensor) -> ParameterLayout:
    """Return the layout in the tensor's bytes, inflated to at most :data:`MAX_LAYOUT_BYTES`.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise ValueError(f"holds a layout of {tensor.dtype} and shape {tuple(tensor.shape)}; expected bytes in a row")
    with validation.error_context("has a damaged layout (", "); save it again"):
        header = validation.parse_header(_inflate(tensor.cpu().numpy().tobytes()).decode())
    return layout_from_json(header)


def _inflate(data: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, MAX_LAYOUT_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflate.eof or inflate.unused_data:
        raise ValueError(f"it does not end where it should, or holds more than {MAX_LAYOUT_BYTES} bytes")
    return text
