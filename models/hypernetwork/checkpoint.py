"""Hypernetworks on disk: one safetensors file, self-describing, written atomically.

Its tensors are the network's own, by name; the header's ``hyperbooth_hypernetwork`` entry (JSON) holds the format
version, the sizes, the layout of what is predicted, the encoder and the base it was made with, the prompt and facts.
What every prediction is made of (the mean, the scale, a learnt input side) stays float32 whatever the precision of the
file.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import validation
from ..files.adapter_file import cast_for_file
from ..files.layout_json import layout_from_json, layout_to_json
from ..files.safetensors_io import write_tensors
from .network import HyperNetwork, HyperNetworkConfig
from .predictor import BaseModelRef, Predictor

HEADER = "hyperbooth_hypernetwork"
VERSION, VERSION_LEARNED_INPUT = 2, 3
"""Of the format; the second one is for networks that learnt an input side, which a pack of the first cannot read."""
EXACT = ("mean", "scale", "input_side")
WIDEST, DEEPEST = 2**14, 64
"""Sizes that a file may claim: far beyond any, so that a stranger's takes no memory to refuse."""


def save_predictor(predictor: Predictor, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``predictor`` to ``path``.

    Raises:
        ValueError: a number of it is none, or it is nothing that :func:`load_predictor` would read.
        OSError: the file cannot be written; nothing is left behind, and a former one is untouched.
    """
    state = predictor.network.state_dict()
    tensors = cast_for_file({name: state[name] for name in state if name not in EXACT}, dtype)
    tensors |= cast_for_file({name: state[name] for name in EXACT if name in state}, torch.float32)
    said = json.dumps(_header(predictor), ensure_ascii=False)
    _network(path.name, said, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    write_tensors(tensors, path, {HEADER: said})


def load_predictor(path: Path) -> Predictor:
    """Read a file that :func:`save_predictor` wrote; float32 on the CPU.

    Raises:
        ValueError: not such a file, of an unknown version, damaged, or made in other bases than there are here.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get(HEADER)
            if said is None:
                raise ValueError(f"{path.name} is no hypernetwork: its header has no {HEADER!r}; choose another file")
            names = list(file.keys())
            validation.check_tensor_names(path.name, names)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            header, network = _network(path.name, said, shapes)
            tensors = {name: _numbers(path.name, file.get_tensor(name), name) for name in names}
    except SafetensorError as error:
        why = "".join(letter for letter in str(error)[:200] if letter.isprintable())
        raise ValueError(f"{path.name} is damaged or no safetensors file ({why}); save it again") from error
    with torch.inference_mode(False):
        network.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return Predictor(network, *(header[name] for name in ("encoder", "base", "prompt", "facts")))


def _header(predictor: Predictor) -> dict[str, Any]:
    config = asdict(predictor.network.config)
    learned = config["learnt_input"] or config.pop("learnt_input")
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


def _network(
    file: str, text: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], HyperNetwork]:  # fmt: skip
    """What the header says, checked, and the network of that kind without numbers yet."""
    try:
        said = validation.parse_header(text)
        if said["version"] not in (VERSION, VERSION_LEARNED_INPUT):
            raise ValueError(
                f"has format version {said['version']!r:.40}, this pack reads {VERSION} and "
                f"{VERSION_LEARNED_INPUT}; update the pack, or train the hypernetwork again if its version is the lower one"
            )
        layout = layout_from_json(said["layout"])
        if shapes.get("mean") != (layout.parameter_count,):
            raise ValueError(
                f"holds a mean of shape {shapes.get('mean')}, its layout is for {layout.parameter_count} numbers"
            )
        layout.check()
        config, width = _config(said["config"]), said["encoder_width"]
        if type(width) is not int or not 1 <= width <= WIDEST:
            raise ValueError(f"is for tokens of width {width!r:.40}; expected a whole number up to {WIDEST}")
        network = HyperNetwork.empty(config, layout, width)
        _check_shapes({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, shapes)
        facts = validation.checked_metadata(said["facts"])
        made = {name: _made(said[name]) for name in ("encoder", "base")}
        if not isinstance(said["prompt"], str) or len(said["prompt"]) > validation.MAX_TEXT_LENGTH:
            raise ValueError(f"gives {said['prompt']!r:.60} for its prompt; expected a text")
        return {**made, "prompt": said["prompt"], "facts": facts}, network
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} has a damaged {HEADER!r} header ({error!r:.80}); save it again") from error


def _numbers(file: str, tensor: Tensor, name: str) -> Tensor:
    try:
        return validation.checked_tensor(tensor, name)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error


def _config(said: Mapping[str, Any]) -> HyperNetworkConfig:
    config = HyperNetworkConfig(**said)
    for name, value in said.items():
        most = DEEPEST if name in ("depth", "refinements") else WIDEST
        if type(value) is not (bool if name in ("shared_input", "learnt_input") else int) or value > most:
            raise ValueError(f"gives {value!r:.40} for {name}; expected one of at most {most}")
    return config


def _made(said: Mapping[str, Any]) -> BaseModelRef:
    validation.checked_metadata({"base": said["kind"], "made_for": [said["record"]]})
    return BaseModelRef(said["kind"], said["record"])


def _check_shapes(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    """The file's tensors are the network's.

    Raises:
        ValueError: one is missing, foreign, or of another shape; both sides are named.
    """
    for name in [*wanted, *given]:
        if wanted.get(name) != given.get(name):
            ours, theirs = (side.get(name, "none") for side in (wanted, given))
            raise ValueError(f"holds {name} of shape {theirs}, its header asks for {ours}; the file is not whole")
