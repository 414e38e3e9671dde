"""Inputs, embeddings with progress, and scores of the evaluation nodes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...models.metrics import scores
from ..bridge.folders import require_output_prefix
from ..bridge.images.metric_encoders import (
    NONE,
    Embedder,
    encoder_files,
    encoder_names,
    installation_hint,
    open_embedder,
    require_encoder_files,
)
from ..bridge.progress import Progress
from ..common import sockets
from ..common.list_inputs import unbatch
from ..common.node import Node

CATEGORY = f"{sockets.CATEGORY}/scores"
NOT_MEASURED = math.nan


def dino_input() -> io.Combo.Input:
    """Return the input that selects the encoder for DINO and DIV."""
    return io.Combo.Input(
        "dino",
        options=encoder_names("dino"),
        tooltip="A DINO in models/dino, in the Hugging Face layout; the paper's is dino-vits16. Not needed if "
        "dino_vision is connected.",
    )


def dino_vision_input() -> io.ClipVision.Input:
    """Return the optional input that takes a DINO of the stock loader."""
    return io.ClipVision.Input(
        "dino_vision",
        optional=True,
        tooltip="A DINOv2 or DINOv3 that the stock Load CLIP Vision opens, in place of dino.",
    )


def clip_input(scores: str) -> io.Combo.Input:
    """Return the input that selects the CLIP for ``scores``."""
    return io.Combo.Input(
        "clip",
        options=encoder_names("clip_score"),
        tooltip=f"A CLIP in models/clip_score, in the Hugging Face layout, for {scores}; clip-vit-base-patch32 is "
        "usual.",
    )


@dataclass(frozen=True)
class Score:
    """A value of one metric.

    Args:
        name: of the metric, as in the papers.
        value: NaN if it was not measured.
        encoder: name of the encoder that it was measured with.
        ceiling: the value of real images among themselves, where that is comparable; NaN for a single image.
        low: whether lower is better.
    """

    name: str
    value: float
    encoder: str = ""
    ceiling: float | None = None
    low: bool = False

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"{self.name}: not measured"
        better = f"{'lower' if self.low else 'higher'} is better{compare_to_ceiling(self.ceiling)}"
        return f"{self.name} {self.value:.4f} ({better}), by {self.encoder}"


def compare_to_ceiling(ceiling: float | None) -> str:
    """Describe the ceiling of a score, if it has one."""
    if ceiling is None:
        return ""
    if math.isnan(ceiling):
        return "; the ceiling of real images needs two references or more"
    return f"; real images among themselves {ceiling:.4f}"


def ceiling_of(embeddings: Tensor) -> float:
    """Return the mean similarity of real images among themselves; NaN for a single one."""
    found = scores.ceiling(embeddings)
    return math.nan if found is None else found


def images_of(name: str, batches: list[Tensor], at_least: int = 1) -> list[Tensor]:
    """Return the single images ``[H, W, 3]`` of an input.

    Args:
        name: of the input, for messages.
        batches: its IMAGE batches ``[B, H, W, C]``.
        at_least: number of images that are needed.

    Raises:
        ValueError: there are fewer than ``at_least``, or one is not an image with finite values.
    """
    images = [_rgb(f"{name}: image {number}", image) for number, image in enumerate(unbatch(batches), 1)]
    if len(images) < at_least:
        pair = ": one image makes no pair" if at_least == 2 else ""
        raise ValueError(f"{name} holds {len(images)} images, expected at least {at_least}{pair}; connect more")
    return images


def _rgb(name: str, image: Tensor) -> Tensor:
    """Return the color channels ``[H, W, 3]`` of an image; alpha is dropped."""
    height, width, channels = image.shape
    if not min(height, width):
        raise ValueError(f"{name} is {width} x {height} pixels; give larger ones")
    if channels not in (1, 3, 4):
        raise ValueError(f"{name} has {channels} channels; give gray, RGB or RGBA")
    if not torch.isfinite(image).all():
        raise ValueError(f"{name} holds NaN or infinite values; make it again")
    return image.expand(-1, -1, 3) if channels == 1 else image[..., :3]


class Scoring(Node):
    """Base of the evaluation nodes.

    A node runs again when its encoder's files change. An encoder that cannot be used is refused by validation, before
    any node of the graph has run: the images may cost an hour of training.
    """

    @classmethod
    def fingerprint_inputs(cls, dino: Any = (NONE,), clip: Any = (NONE,), **_: Any) -> Any:
        return [encoder_files(kind, name) for kind, (name, *_) in (("dino", dino), ("clip_score", clip))]

    @classmethod
    def validate_inputs(
        cls, dino: Any = None, clip: Any = None, dino_vision: Any = None, clip_vision: Any = None, prompt: Any = None,
        filename_prefix: Any = None,
    ) -> bool | str:  # fmt: skip
        """Check what is known before the graph runs: a linked input is (None,) here, one that is not connected None.

        Args:
            dino: name of the encoder for DINO and DIV.
            clip: name of the encoder for CLIP-I and CLIP-T.
            dino_vision: a CLIP_VISION in place of ``dino``.
            clip_vision: a CLIP_VISION in place of ``clip``.
            prompt: of the samples.
            filename_prefix: of the CSV file.

        Returns:
            An error message, or True.
        """
        given = [("dino", dino, dino_vision), ("clip_score", clip, clip_vision)]
        given = [(kind, names[0], vision) for kind, names, vision in given if names is not None]
        if all(name == NONE and vision is None for _, name, vision in given):
            return no_encoder_message([kind for kind, *_ in given])
        try:
            for kind, name, vision in given:
                if name not in (None, NONE) and vision is None:
                    require_encoder_files(kind, name)
            if is_widget_text(prompt) and (clip is None or clip[0] != NONE):
                require_prompt(prompt[0])
            if is_widget_text(filename_prefix):
                require_output_prefix(filename_prefix[0])
        except ValueError as error:
            return str(error)
        return True


def is_widget_text(given: Any) -> bool:
    """Whether an input is a text typed into the widget, not a link."""
    return given is not None and isinstance(given[0], str)


def require_prompt(prompt: str) -> None:
    """Require a prompt.

    Raises:
        ValueError: it is empty.
    """
    if not prompt.strip():
        raise ValueError("prompt is empty; give what the samples are to show")


def no_encoder_message(kinds: Sequence[str]) -> str:
    """Say how to get an encoder of the ``kinds``, none of which is chosen."""
    return f"no encoder is chosen: {', or '.join(map(installation_hint, kinds))}"


def require_embedder(kind: str, name: str, vision: Any = None) -> Embedder:
    """Return the encoder that is chosen.

    Args:
        kind: folder of encoders, "dino" or "clip_score".
        name: of the encoder in it, or "none".
        vision: a CLIP_VISION to take in its place, or None.

    Raises:
        ValueError: none is chosen; the message says how to get one.
    """
    found = open_embedder(kind, name, vision)
    if found is None:
        raise ValueError(no_encoder_message([kind]))
    return found


class Embeddings:
    """Embed lists of images, each list once per encoder, with progress over all ``total`` images."""

    def __init__(self, total: int):
        self._progress, self._total, self._before = Progress(total), total, 0
        self._cache: dict[tuple[int, int], Tensor] = {}

    def __call__(self, by: Embedder, images: list[Tensor]) -> Tensor:
        key = id(images), id(by)  # not its name: models/dino/base and models/clip_score/base are two
        if key not in self._cache:
            self._cache[key] = by.embed_images(images, self._done)
            self._before += len(images)
        return self._cache[key]

    def _done(self, done: int) -> None:
        self._progress(min(self._before + done, self._total), self._total)
