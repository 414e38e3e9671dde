"""Save and load the repository's hypernetwork."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tools.comfy_harness.import_pack import load_pack

from ..weight_files import existing

WEIGHTS = Path(__file__).parent / "weights.safetensors"
LIDB: dict[str, Any] = {
    "rank": 4, "a": 50, "b": 50, "targets": "all linear and convolution", "text_encoder": False
}  # fmt: skip
"""Inputs of the *LiDB* node for the adapter that it predicts."""


def keep(predictor: Any, path: Path = WEIGHTS) -> None:
    """Save the hypernetwork in half precision, as *Save HyperNetwork* does."""
    load_pack()
    from hyperbooth.models.hypernetwork.checkpoint import save_predictor

    save_predictor(predictor, path, torch.float16)


def kept(path: Path = WEIGHTS) -> Any:
    """Load the hypernetwork, as *Load HyperNetwork* does.

    Raises:
        FileNotFoundError: it is not trained yet; the message tells how to train it.
    """
    load_pack()
    from hyperbooth.models.hypernetwork.checkpoint import load_predictor

    return load_predictor(existing(path))
