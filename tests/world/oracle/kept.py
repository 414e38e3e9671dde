"""The oracle's weights in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .network import Oracle
from .questions import QUESTIONS

WEIGHTS = Path(__file__).parent / "weights.safetensors"


def keep(oracle: Oracle, path: Path = WEIGHTS) -> None:
    """Write it in half precision."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in oracle.state_dict().items()
    }
    save_file(tensors, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def kept(path: Path = WEIGHTS) -> Oracle:
    """The oracle, ready to read."""
    oracle = Oracle(QUESTIONS)
    oracle.load_state_dict(load_file(path))
    return oracle.eval().requires_grad_(False).to(torch.float32)
