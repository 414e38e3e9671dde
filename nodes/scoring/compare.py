"""Adapters side by side: their samples, their scores, and which is better at what."""

import csv
import io as text_io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ...models import scores
from ...models.storage import write_whole
from ...trainers.sheet import grid
from ..bridge.encoders import embedder
from ..bridge.files import output_file, output_name
from ..bridge.pixels import to_image
from ..lists import only
from .measure import (
    CATEGORY,
    NOT_MEASURED,
    Embeddings,
    Score,
    Scoring,
    beside,
    clip_input,
    dino_input,
    dino_vision_input,
    none_chosen,
    pictures_of,
)  # fmt: skip
from .prompt import prompt_score
from .subject import subject_score

SHOWN = 6
"""Pictures of each adapter on the sheet at most; all count for the scores."""


class CompareSheet(Scoring):
    """Samples of several adapters -> sheet, report, CSV."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothCompareSheet",
            display_name="Compare Sheet",
            category=CATEGORY,
            description="Samples of several adapters from the same prompt and seeds side by side, with their scores "
            "underneath: DINO, CLIP-I, CLIP-T, DIV. Says which is better at what, and writes the numbers as CSV.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="A list with one batch of samples per adapter, all of the prompt: Create List."
                ),
                io.String.Input(
                    "labels",
                    default="first\nsecond",
                    multiline=True,
                    tooltip="What each batch is called, a line each, in the order of the list.",
                ),
                io.Image.Input("references", tooltip="Photographs of the subject."),
                io.String.Input(
                    "prompt",
                    default="a photo of a dog on a beach",
                    multiline=True,
                    tooltip="What the samples are to show, without the rare word.",
                ),
                dino_input(),
                clip_input("CLIP-I and CLIP-T"),
                io.String.Input(
                    "filename_prefix", default="scores/compare", tooltip="Where the CSV goes, below the output folder."
                ),
                dino_vision_input(),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="The samples, with scores underneath."),
                io.String.Output(display_name="report", tooltip="The scores of each, and which is better at what."),
                io.String.Output(display_name="path", tooltip="The CSV, below the output folder."),
            ],
        )

    @classmethod
    def execute(
        cls, images: list[Tensor], labels: list[str], references: list[Tensor], prompt: list[str], dino: list[str],
        clip: list[str], filename_prefix: list[str], dino_vision: list[Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        batches = [pictures_of(f"images, batch {n}", [batch]) for n, batch in enumerate(images, 1)]
        names = labels_of(only("labels", labels), len(batches))
        real, path = (
            pictures_of("references", references),
            output_file(only("filename_prefix", filename_prefix), ".csv"),
        )
        by_dino = embedder("dino", only("dino", dino), dino_vision and only("dino_vision", dino_vision))
        by_clip = embedder("clip_score", only("clip", clip))
        if by_dino is None and by_clip is None:
            raise ValueError(none_chosen(("dino", "clip_score")))
        encoders = [by for by in (by_dino, by_clip) if by is not None]
        embed = Embeddings((sum(map(len, batches)) + len(real)) * len(encoders))
        table, note = [], ""
        for samples in batches:
            clip_t = Score("CLIP-T", NOT_MEASURED)
            if by_clip:
                clip_t, note = prompt_score(by_clip, embed, samples, only("prompt", prompt))
            table.append([
                subject_score("DINO", by_dino, embed, samples, real),
                subject_score("CLIP-I", by_clip, embed, samples, real),
                clip_t,
                spread(by_dino, embed, samples),
            ])  # fmt: skip
        write_whole([as_csv(names, table).encode()], path)
        report = f"{in_words(names, table)}{note}\nwritten to {output_name(path)}"
        sheet = to_image(drawn(batches, names, table))
        return io.NodeOutput(sheet, report, output_name(path), ui={"text": (report,)})


def labels_of(text: str, count: int) -> list[str]:
    """A name for each batch.

    Raises:
        ValueError: there are fewer or more, two are equal, or one cannot be written into a file.
    """
    names = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(names) != count:
        raise ValueError(
            f"labels names {len(names)} ({', '.join(names)}), images has {count} batches; give a line to each, and "
            "join batches by Create List: Image Batch makes one of them"
        )
    if unwritable := [name for name in names if not name.isprintable()]:
        raise ValueError(f"labels has {unwritable[0]!r}, which cannot be written; leave out control characters")
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"labels has {twice[0]!r} twice; give each batch a name of its own")
    return names


def spread(by: Any, embed: Embeddings, samples: list[Tensor]) -> Score:
    """DIV, where there are two samples."""
    if by is None or len(samples) < 2:
        return Score("DIV", NOT_MEASURED)
    return Score("DIV", scores.diversity(embed(by, samples)), by.name)


def in_words(names: Sequence[str], table: Sequence[Sequence[Score]]) -> str:
    """Every score that was measured, the best first, with its ceiling and its encoder."""
    lines = []
    for column in zip(*table, strict=True):
        measured = [(name, score) for name, score in zip(names, column, strict=True) if not math.isnan(score.value)]
        if not measured:
            continue
        ranked = sorted(measured, key=lambda pair: pair[1].value, reverse=not measured[0][1].low)
        values = [f"{name} {score.value:.4f}" for name, score in ranked]
        values += [f"{name} not measured" for name in names if name not in dict(measured)]
        first = ranked[0][1]
        by = f"by {first.encoder}{beside(first.ceiling)}"
        lines.append(f"{first.name}: {_verdict(ranked)}{', '.join(values)} ({by})")
    return "\n".join(lines)


def _verdict(ranked: Sequence[tuple[str, Score]]) -> str:
    """Which is best, as far as the printed digits tell; nothing of one alone."""
    best = [name for name, score in ranked if f"{score.value:.4f}" == f"{ranked[0][1].value:.4f}"]
    if len(ranked) == 1:
        return ""
    if len(best) == len(ranked):
        return "equal. "
    return f"{' and '.join(best)} {'is' if len(best) == 1 else 'are'} best. "


def as_csv(names: Sequence[str], table: Sequence[Sequence[Score]]) -> str:
    """A row for each adapter; what was not measured is empty."""
    file = text_io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["name", *(f"{s.name}{extra}" for s in table[0] for extra in ("", " ceiling", " encoder"))])
    for name, row in zip(names, table, strict=True):
        cells = [cell for s in row for cell in (_number(s.value), _number(s.ceiling), s.encoder)]
        writer.writerow([_as_text(name), *cells])
    return file.getvalue()


def _as_text(name: str) -> str:
    """A name that table programs do not compute: labels come with workflows of others."""
    return f"'{name}" if name[0] in "=+-@" else name


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def drawn(batches: Sequence[Sequence[Tensor]], names: Sequence[str], table: Sequence[Sequence[Score]]) -> Image.Image:
    """A column for each adapter."""
    rows = min(SHOWN, max(map(len, batches)))
    cells = [[_picture(batch[row]) if row < len(batch) else None for batch in batches] for row in range(rows)]
    below = ["\n".join(f"{s.name} {s.value:.3f}" for s in row if not math.isnan(s.value)) for row in table]
    return grid(cells, names, below=below, side=256, text=15)


def _picture(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().cpu().numpy().astype(np.uint8))
