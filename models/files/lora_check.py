"""Check, by the names of its tensors alone, that a file of another program is a plain LoRA."""

import re
from collections.abc import Iterable

from .lora_key_formats import DIFFERENCE, split_name

_EMBEDDING = {"emb_params", "clip_l", "clip_g", "t5xxl"}
"""Names of the tensors of embedding files."""
_BUNDLED = "bundle_emb."
"""Begins the names of an embedding's tensors: ``bundle_emb.<name>.<text encoder>``."""
_UNSUPPORTED = {
    r"dora_scale|lora_magnitude_vector.*": "DoRA",
    r"hada_\w+": "LoHa",
    r"lokr_\w+": "LoKr",
    r"lora_mid\.weight": "CP-decomposed LoCon",
    r"oft_\w+": "OFT",
    r"lora_B\.bias": "biased LoRA",
    r"diff_b|set_weight|reshape_weight|[wb]_norm": "whole-weight",
}
"""End of a tensor's name -> kind of adapter; kinds that the stock loaders read and this pack does not."""


def check_is_lora(file: str, names: Iterable[str]) -> None:
    """Check by the names of its tensors that a file is a plain LoRA, before anything large is read.

    Raises:
        ValueError: it is something else; the message tells what, and which node opens it.
    """
    names = [name for name in names if not is_bundled(name)]
    if not names:
        raise ValueError(f"{file} holds no tensors of a LoRA; save or copy it again")
    if _EMBEDDING.issuperset(names):
        raise ValueError(
            f"{file} is an embedding file for prompts and no LoRA; move it to models/embeddings and write "
            f"embedding:{file.removesuffix('.safetensors')} in a prompt"
        )
    strange = [name for name in names if split_name(name) is None and not name.endswith(DIFFERENCE)]
    kinds = {kind for name in strange for end, kind in _UNSUPPORTED.items() if re.search(rf"\.(?:{end})$", name)}
    if kinds:
        raise ValueError(
            f"{file} holds {', '.join(sorted(kinds))} tensors (such as {strange[0]}), Load Adapter reads plain LoRA "
            "and differences of weights only; the stock Load LoRA opens it"
        )
    if strange:
        raise ValueError(
            f"{file} is no LoRA: it holds {len(strange)} tensors such as {strange[0]}; "
            "a checkpoint opens in the stock Load Checkpoint"
        )


def is_bundled(name: str) -> bool:
    """Return whether a tensor is of an embedding that A1111's tools and OneTrainer bundle with a LoRA."""
    return name.startswith(_BUNDLED) and name.count(".") > 1
