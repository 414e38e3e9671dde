"""Which layers an adapter changes.

A target is named as ComfyUI names the weight (without ``.weight``): ``diffusion_model.…`` for the
diffusion model, ``text_encoders.…`` for the text encoders. That is also its name in files.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..validation import MAX_NAME_LENGTH, is_name, parse_shape

MAX_LAYERS = 8192
"""Of one link; the largest models have some thousand."""

DIFFUSION_PREFIX = "diffusion_model."
TEXT_PREFIX = "text_encoders."

# Attention in U-Nets (attn1, attn2), MMDiT (attn), Flux (img_attn, txt_attn, and single blocks, whose
# fused linear1/linear2 hold q, k, v and out), Wan and CLIP (self_attn, cross_attn), T5 (SelfAttention).
_ATTENTION = r"\.\w*(?:attn|attention)\d?\.(?:.*\.)?[a-z_0-9]+$|\.single_blocks\.\d+\.linear[12]$"
_FEED_FORWARD = r"(?<!embedder)\.(?:ff|ffn|mlp|img_mlp|txt_mlp|feed_forward|densereludense)\.[a-z_0-9.]+$"
# Everything but the entrance and the exit, which speak latent channels: a matrix of four rows holds no rank of 8.
_INNER = (
    r"^(?!diffusion_model\.(?:input_blocks\.0|out|x_embedder|img_in|patch_embedding|patchify_proj|init_x_linear|first|"
    r"final_layer|final_linear|head|last|proj_out)(?:\.|$))"
)

# An embedder's mlp is no feed-forward. Joint attention (MMDiT, Flux) is neither self nor cross; SD3.5's second one is
# self.
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
"""Rule name -> (pattern on the layer's name, whether convolutions count)."""


MAX_SIZE = 2**20
"""Of a weight's sizes: far beyond any layer's, so that products of a few stay numbers."""


@dataclass(frozen=True)
class Target:
    """One layer to change: its name and the shape of its weight, ``(out, in)`` or ``(out, in, kh, kw)``.

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
        """The shape an adapter sees: ``(out, in)`` with a convolution's kernel flattened into ``in``."""
        return self.shape[0], math.prod(self.shape[1:])


def targets_from_header(entries: Any) -> dict[str, Target]:
    """Layer name -> target, from a header's name -> shape.

    Raises:
        ValueError: there is none, or a name or shape is no layer's.
    """
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"gives {entries!r:.40} for targets; expected layers with the shapes of their weights")
    if len(entries) > MAX_LAYERS:
        raise ValueError(f"names {len(entries)} layers; no model has more than {MAX_LAYERS}")
    return {name: Target(name, parse_shape(shape, name)) for name, shape in entries.items()}


def select_targets(shapes: Mapping[str, tuple[int, ...]], rule: str) -> list[Target]:
    """The layers of ``shapes`` (name -> weight shape) that ``rule`` names, in the order given.

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
        raise ValueError(_nothing_matches(shapes, rule))
    return found


def text_rule(rule: str) -> str:
    """The rule for the text encoder beside ``rule`` for the diffusion model.

    A text encoder has self-attention only, so that every attention rule means its attention.
    """
    return "attention" if rule in ("attention", "self attention", "cross attention") else rule


def _nothing_matches(shapes: Mapping[str, tuple[int, ...]], rule: str) -> str:
    some = ", ".join(list(shapes)[:: max(1, len(shapes) // 4)][:4]) or "none at all"
    return (
        f"targets {rule!r} matches none of the model's {len(shapes)} layers (some of them: {some}); "
        f"choose another of {', '.join(map(repr, RULES))}"
    )
