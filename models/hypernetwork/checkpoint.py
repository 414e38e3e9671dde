"""Hypernetwork files: one self-describing safetensors file, written atomically.

Its tensors are the network's state dict; the header's ``hyperbooth_hypernetwork`` entry (JSON) holds the format
version, the sizes, the layout of theta, references to image encoder and base model, the prompt and the metadata. The
tensors that every prediction contains (mean, scale, learned shared factor) stay float32, whatever the precision of the
file.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import validation
from ..adapters.parameter_layout import ParameterLayout
from ..files.adapter_file import cast_for_file
from ..files.digest import DIGEST, check_digest, file_digest
from ..files.layout_json import layout_from_json, layout_to_json
from ..files.safetensors_io import write_tensors
from .network import HyperNetwork, HyperNetworkConfig
from .predictor import BaseModelRef, Predictor

HEADER = "hyperbooth_hypernetwork"
VERSION = 2
"""Format version of a network without a learned shared factor."""
VERSION_LEARNED_INPUT = 3
"""Format version of a network with a learned shared factor, which readers of version 2 refuse."""
FLOAT32 = ("mean", "scale", "input_side")
"""Tensors that are float32 in every file."""
MAX_WIDTH = 2**14
"""Largest width, number of heads or directions in a file: far beyond any network, and cheap to refuse."""
MAX_NETWORK_DEPTH = 64
"""Largest number of decoder layers or refinements in a file."""

Width = Annotated[int, Field(ge=0, le=MAX_WIDTH)]
Depth = Annotated[int, Field(ge=0, le=MAX_NETWORK_DEPTH)]


class _ConfigHeader(validation.Header, extra="forbid"):
    """The fields of :class:`HyperNetworkConfig`; files lack those that were added after they were written."""

    width: Width = HyperNetworkConfig.width
    depth: Depth = HyperNetworkConfig.depth
    heads: Width = HyperNetworkConfig.heads
    refinements: Depth = HyperNetworkConfig.refinements
    directions: Width = HyperNetworkConfig.directions
    shared_input: bool = HyperNetworkConfig.shared_input
    learnt_input: bool = HyperNetworkConfig.learnt_input


class _ModelRefHeader(validation.Header):
    kind: validation.Text
    record: validation.NumberLists

    def ref(self) -> BaseModelRef:
        return BaseModelRef(self.kind, self.record)


class _PredictorHeader(validation.Header):
    config: _ConfigHeader
    encoder_width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    layout: dict[str, Any]
    encoder: _ModelRefHeader
    base: _ModelRefHeader
    prompt: validation.Text
    facts: dict[str, Any]


def save_predictor(predictor: Predictor, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``predictor`` to ``path``.

    Args:
        predictor: the network and what it was trained with.
        path: of the file.
        dtype: of all tensors but those of :data:`FLOAT32`.

    Raises:
        ValueError: a tensor holds NaN or infinite values, or :func:`load_predictor` would refuse the file.
        OSError: the file cannot be written; no partial file is left, and an existing one is unchanged.
    """
    state = predictor.network.state_dict()
    tensors = cast_for_file({name: state[name] for name in state if name not in FLOAT32}, dtype)
    tensors |= cast_for_file({name: state[name] for name in FLOAT32 if name in state}, torch.float32)
    text = json.dumps(_header_of(predictor), ensure_ascii=False)
    with validation.error_context(f"{path.name} "):
        _empty_predictor(text, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    write_tensors(tensors, path, {HEADER: text, DIGEST: file_digest(text, tensors)})


def load_predictor(path: Path) -> Predictor:
    """Read a file that :func:`save_predictor` wrote; the network is float32 on the CPU.

    Raises:
        ValueError: the file is no hypernetwork, or of an unknown version, or damaged, or its random bases cannot be
                made here.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            if text is None:
                raise ValueError(f"{path.name} is no hypernetwork: its header has no {HEADER!r}; choose another file")
            names = list(file.keys())
            validation.check_tensor_names(path.name, names)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            with validation.error_context(f"{path.name} "):
                predictor = _empty_predictor(text, shapes)
                if DIGEST in file.metadata():  # files of before have none
                    check_digest(file.metadata(), text, {name: file.get_tensor(name) for name in names})
                tensors = {name: validation.checked_tensor(file.get_tensor(name), name) for name in names}
    except SafetensorError as error:
        why = "".join(letter for letter in str(error)[:200] if letter.isprintable())
        raise ValueError(f"{path.name} is damaged or no safetensors file ({why}); save it again") from error
    _load_state(predictor.network, tensors)
    return predictor


def _load_state(network: HyperNetwork, tensors: Mapping[str, Tensor]) -> None:
    with torch.inference_mode(False):
        network.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)


def _header_of(predictor: Predictor) -> dict[str, Any]:
    config = asdict(predictor.network.config)
    learned = config["learnt_input"] or config.pop("learnt_input")  # files of version 2 have no such entry
    return {
        "version": VERSION_LEARNED_INPUT if learned else VERSION,
        "config": config,
        "encoder_width": predictor.network.encoder_width,
        "layout": layout_to_json(predictor.network.layout),
        "encoder": asdict(predictor.encoder),
        "base": asdict(predictor.base),
        "prompt": predictor.prompt,
        "facts": dict(predictor.metadata),
    }


def _empty_predictor(text: str, shapes: Mapping[str, tuple[int, ...]]) -> Predictor:
    """Return the predictor that a header describes, its network on the meta device.

    Args:
        text: the header, JSON.
        shapes: of the file's tensors.

    Raises:
        ValueError: the header is damaged or of another version, or the tensors are not those of its network.
    """
    content = validation.parse_header(text)
    if isinstance(content, dict) and content.get("version") == 1:
        raise ValueError("has format version 1, which this pack does not read any more; train the hypernetwork again")
    validation.check_version(content, VERSION, VERSION_LEARNED_INPUT)
    header = validation.validated(_PredictorHeader, content)
    metadata = validation.checked_metadata(header.facts)
    layout = _layout(header.layout, shapes)
    network = HyperNetwork.empty(HyperNetworkConfig(**header.config.model_dump()), layout, header.encoder_width)
    _check_shapes({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, shapes)
    return Predictor(network, header.encoder.ref(), header.base.ref(), header.prompt, metadata)


def _layout(header: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> ParameterLayout:
    """Return the layout, after a check of its size: before it is known to be true, nothing of that size is made."""
    layout = layout_from_json(header)
    size = layout.parameter_count
    if shapes.get("mean") != (size,):
        raise ValueError(f"holds a mean of shape {shapes.get('mean')}, its layout is for {size} parameters")
    layout.check()
    return layout


def _check_shapes(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    """Require that the file's tensors are those of the network.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape; the message has both shapes.
    """
    for name in [*expected, *given]:
        if expected.get(name) != given.get(name):
            ours, theirs = (side.get(name, "none") for side in (expected, given))
            raise ValueError(f"holds {name} of shape {theirs}, its header asks for {ours}; the file is incomplete")
