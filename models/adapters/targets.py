"""Selection of the layers that an adapter changes.

A target has the name that ComfyUI gives the weight (without ``.weight``): ``diffusion_model.…`` in the diffusion model,
``text_encoders.…`` in the text encoders. It has the same name in files.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..validation import MAX_NAME_LENGTH, is_name, parse_shape

MAX_LAYERS = 8192
"""Layers of one adapter; the largest models have some thousand."""

DIFFUSION_PREFIX = "diffusion_model."
TEXT_PREFIX = "text_encoders."

# Attention in U-Nets (attn1, attn2), MMDiT (attn), Flux (img_attn, txt_attn, and single blocks, whose
# fused linear1/linear2 hold q, k, v and out), Wan and CLIP (self_attn, cross_attn), T5 (SelfAttention).
_ATTENTION = r"\.\w*(?:attn|attention)\d?\.(?:.*\.)?[a-z_0-9]+$|\.single_blocks\.\d+\.linear[12]$"
_FEED_FORWARD = r"(?<!embedder)\.(?:ff|ffn|mlp|img_mlp|txt_mlp|feed_forward|densereludense)\.[a-z_0-9.]+$"
# Everything but the input and output layers, whose width is that of latents: a matrix of four rows has no rank of 8.
_INNER = (
    r"^(?!diffusion_model\.(?:input_blocks\.0|out|x_embedder|img_in|patch_embedding|patchify_proj|init_x_linear|first|"
    r"final_layer|final_linear|head|last|proj_out)(?:\.|$))"
)

# An embedder's mlp is no feed-forward layer. Joint attention (MMDiT, Flux) is neither self- nor cross-attention; the
# second attention of SD3.5 is self-attention.
_CROSS_ATTENTION = r"(?<!\.x_block)\.(?:attn2|cross_attn)\."

RULES: dict[str, tuple[str, bool]] = {
    "attention": (_ATTENTION, False),
    "self attention": (r"\.(?:attn1|self_attn|selfattention)\.|\.x_block\.attn2\.|\.blocks\.\d+\.attn\.", False),
    "cross attention": (_CROSS_ATTENTION, False),
    "attention and feed-forward": (f"{_ATTENTION}|{_FEED_FORWARD}", False),
    "all linear": (_INNER, False),
    "all linear and convolution": (_INNER, True),
    "all weights": ("", True),
    "all but cross attention": (f"^(?!.*{_CROSS_ATTENTION}){_INNER}", False),
}
"""Rule name -> (pattern on the layer's name, whether convolutions are included)."""


MAX_SIZE = 2**20
"""Largest size of a weight's dimension: far beyond any layer's, and small enough for products of a few of them."""


@dataclass(frozen=True)
class Target:
    """One layer that an adapter changes.

    Args:
        name: ComfyUI's name of the weight without ``.weight``.
        shape: the weight's, ``(out, in)`` or ``(out, in, kh, kw)``.

    Raises:
        ValueError: the name cannot be printed, or the shape is not of one of these forms.
    """

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(
                f"{self.name!r:.80} is no layer's name; names have 1 to {MAX_NAME_LENGTH} printable characters"
            )
        if len(self.shape) not in (2, 4) or not all(0 < size <= MAX_SIZE for size in self.shape):
            raise ValueError(
                f"layer {self.name} has a weight of shape {self.shape!r:.80}; expected (out, in) or (out, in, kh, kw), "
                f"each from 1 to {MAX_SIZE}"
            )

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in)`` with a convolution's kernel flattened into ``in``."""
        return self.shape[0], math.prod(self.shape[1:])


def targets_from_header(entries: Any) -> dict[str, Target]:
    """Return layer name -> target, from a header's mapping of names to shapes.

    Raises:
        ValueError: the mapping is empty or too large, or a name or shape cannot be a layer's.
    """
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"gives {entries!r:.40} for targets; expected layers with the shapes of their weights")
    if len(entries) > MAX_LAYERS:
        raise ValueError(f"names {len(entries)} layers; no model has more than {MAX_LAYERS}")
    return {name: Target(name, parse_shape(shape, name)) for name, shape in entries.items()}


def select_targets(shapes: Mapping[str, tuple[int, ...]], rule: str) -> list[Target]:
    """Return the layers that match a rule, in the order given.

    Args:
        shapes: layer name -> shape of its weight.
        rule: name in :data:`RULES`.

    Raises:
        ValueError: the rule is unknown, or matches no layer.
    """
    if rule not in RULES:
        raise ValueError(f"targets is {rule!r}; give one of {', '.join(map(repr, RULES))}")
    pattern, with_convolutions = RULES[rule]
    found = [
        Target(name, tuple(shape))
        for name, shape in shapes.items()
        if (with_convolutions or len(shape) == 2) and re.search(pattern, name, re.IGNORECASE)
    ]
    if not found:
        raise ValueError(_no_match_message(shapes, rule))
    return found


def text_rule(rule: str) -> str:
    """Return the text encoder's rule that corresponds to ``rule`` for the diffusion model.

    A text encoder has self-attention only, to which every attention rule therefore refers.
    """
    return "attention" if rule in ("attention", "self attention", "cross attention") else rule


def _no_match_message(shapes: Mapping[str, tuple[int, ...]], rule: str) -> str:
    examples = ", ".join(list(shapes)[:: max(1, len(shapes) // 4)][:4]) or "none at all"
    return (
        f"targets {rule!r} matches none of the model's {len(shapes)} layers (some of them: {examples}); "
        f"choose another of {', '.join(map(repr, RULES))}"
    )
