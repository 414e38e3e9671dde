"""Save and load the oracle's weights in the repository."""

from __future__ import annotations

from pathlib import Path

import torch

from ..weight_files import halved, read, write
from .network import Oracle
from .questions import QUESTIONS

WEIGHTS = Path(__file__).parent / "weights.safetensors"


def keep(oracle: Oracle, path: Path = WEIGHTS) -> None:
    """Save the oracle in half precision."""
    write(halved(oracle.state_dict()), path)


def kept(path: Path = WEIGHTS) -> Oracle:
    """Load the oracle in float32 and evaluation mode."""
    oracle = Oracle(QUESTIONS)
    oracle.load_state_dict(read(path))
    return oracle.eval().requires_grad_(False).to(torch.float32)
