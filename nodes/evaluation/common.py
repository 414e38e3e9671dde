"""What all scoring nodes share: inputs, embeddings with progress, and scores in words."""

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

CATEGORY = f"{sockets.CATEGORY}/scores"
NOT_MEASURED = math.nan


def dino_input() -> io.Combo.Input:
    return io.Combo.Input(
        "dino",
        options=encoder_names("dino"),
        tooltip="A DINO in models/dino, in the Hugging Face layout; the paper's is dino-vits16. Not needed if "
        "dino_vision is connected.",
    )


def dino_vision_input() -> io.ClipVision.Input:
    return io.ClipVision.Input(
        "dino_vision",
        optional=True,
        tooltip="A DINOv2 or DINOv3 that the stock Load CLIP Vision opens, in place of dino.",
    )


def clip_input(what: str) -> io.Combo.Input:
    return io.Combo.Input(
        "clip",
        options=encoder_names("clip_score"),
        tooltip=f"A CLIP in models/clip_score, in the Hugging Face layout, for {what}; clip-vit-base-patch32 is usual.",
    )


@dataclass(frozen=True)
class Score:
    """One number.

    Args:
        name: as papers call it.
        value: NaN if it was not measured.
        encoder: by which it was measured.
        ceiling: what real pictures reach, if that says something; NaN of one picture, which makes no pair.
        low: whether less is better.
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
    """What stands beside a score that has a ceiling."""
    if ceiling is None:
        return ""
    if math.isnan(ceiling):
        return "; how high real pictures get, one reference cannot say"
    return f"; real pictures among themselves {ceiling:.4f}"


def ceiling_of(embeddings: Tensor) -> float:
    """Of real pictures; NaN of one."""
    found = scores.ceiling(embeddings)
    return math.nan if found is None else found


def pictures_of(name: str, batches: list[Tensor], at_least: int = 1) -> list[Tensor]:
    """Single pictures ``[H, W, 3]`` of an input.

    Raises:
        ValueError: there are fewer than ``at_least``, or one is no picture.
    """
    pictures = [_colours(f"{name}: image {number}", picture) for number, picture in enumerate(unbatch(batches), 1)]
    if len(pictures) < at_least:
        pair = ": one picture makes no pair" if at_least == 2 else ""
        raise ValueError(f"{name} holds {len(pictures)} pictures, expected at least {at_least}{pair}; connect more")
    return pictures


def _colours(name: str, picture: Tensor) -> Tensor:
    """Red, green and blue of a picture, of which none is missing."""
    height, width, channels = picture.shape
    if not min(height, width):
        raise ValueError(f"{name} is {width} x {height} pixels; give larger ones")
    if channels not in (1, 3, 4):
        raise ValueError(f"{name} has {channels} channels; give grey, RGB or RGBA")
    if not torch.isfinite(picture).all():
        raise ValueError(f"{name} holds NaN or infinite values; make it again")
    return picture.expand(-1, -1, 3) if channels == 1 else picture[..., :3]


class Scoring(io.ComfyNode):
    """What scores: asked for again when an encoder's files change, and refused before anything has run if the one
    that is chosen cannot be used: the pictures may cost an hour of training."""

    @classmethod
    def fingerprint_inputs(cls, dino: Any = (NONE,), clip: Any = (NONE,), **_: Any) -> Any:
        return [encoder_files(kind, name) for kind, (name, *_) in (("dino", dino), ("clip_score", clip))]

    @classmethod
    def validate_inputs(
        cls, dino: Any = None, clip: Any = None, dino_vision: Any = None, clip_vision: Any = None, prompt: Any = None,
        filename_prefix: Any = None,
    ) -> bool | str:  # fmt: skip
        """A linked input is (None,) here, one that is not connected None."""
        given = [("dino", dino, dino_vision), ("clip_score", clip, clip_vision)]
        given = [(kind, names[0], vision) for kind, names, vision in given if names is not None]
        if all(name == NONE and vision is None for _, name, vision in given):
            return none_chosen([kind for kind, *_ in given])
        try:
            for kind, name, vision in given:
                if name not in (None, NONE) and vision is None:
                    require_encoder_files(kind, name)
            if written(prompt) and (clip is None or clip[0] != NONE):
                check_prompt(prompt[0])
            if written(filename_prefix):
                require_output_prefix(filename_prefix[0])
        except ValueError as error:
            return str(error)
        return True


def written(given: Any) -> bool:
    """Whether an input is a text in the graph, and no link."""
    return given is not None and isinstance(given[0], str)


def check_prompt(prompt: str) -> None:
    """There is something to follow.

    Raises:
        ValueError: there is not.
    """
    if not prompt.strip():
        raise ValueError("prompt is empty, so that nothing could be followed; give what the samples are to show")


def none_chosen(kinds: Sequence[str]) -> str:
    """What to do then."""
    return f"no encoder is chosen: {', or '.join(map(installation_hint, kinds))}"


def needed(kind: str, name: str, vision: Any = None) -> Embedder:
    """The embedder that is chosen.

    Raises:
        ValueError: none is; the message says how to get one.
    """
    found = open_embedder(kind, name, vision)
    if found is None:
        raise ValueError(none_chosen([kind]))
    return found


class Embeddings:
    """Embeddings of lists of pictures, each made once, with progress over all."""

    def __init__(self, total: int):
        self._show, self._total, self._before = Progress(total), total, 0
        self._made: dict[tuple[int, int], Tensor] = {}

    def __call__(self, by: Embedder, pictures: list[Tensor]) -> Tensor:
        key = id(pictures), id(by)  # not its name: models/dino/base and models/clip_score/base are two
        if key not in self._made:
            self._made[key] = by.images(pictures, self._done)
            self._before += len(pictures)
        return self._made[key]

    def _done(self, done: int) -> None:
        self._show(min(self._before + done, self._total), self._total)
