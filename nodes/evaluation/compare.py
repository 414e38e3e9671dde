"""Adapters side by side: their samples, their scores, and which is better at what."""

import csv
import io as text_io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ...models.files.safetensors_io import write_atomically
from ...models.metrics import scores
from ...trainers.reporting.image_grid import image_grid, told_apart
from ..bridge.folders import output_file, output_name, require_output_prefix
from ..bridge.images.metric_encoders import Embedder, open_embedder
from ..bridge.images.vae import to_image
from ..common.list_inputs import single_value
from .common import (  # fmt: skip
    CATEGORY,
    NOT_MEASURED,
    Embeddings,
    Score,
    Scoring,
    clip_input,
    compare_to_ceiling,
    dino_input,
    dino_vision_input,
    none_chosen,
    pictures_of,
)
from .prompt_fidelity import cut_off, prompt_score
from .subject_fidelity import subject_score

SHOWN = 6
"""Pictures of each adapter on the sheet, if there are no more prompts; all count for the scores."""
FORMULA = (*"=+-@", *map(chr, (0xFF1D, 0xFF0B, 0xFF0D, 0xFF20)))
"""What a formula begins with, in full width too."""


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
                    "images",
                    tooltip="A list with one batch of samples per adapter, all of the prompt: Create List. Of several "
                    "prompts: all batches of the first adapter in the prompts' order, then those of the next.",
                ),
                io.String.Input(
                    "labels",
                    default="first\nsecond",
                    multiline=True,
                    tooltip="What each adapter is called, a line each, in the order of the list.",
                ),
                io.Image.Input("references", tooltip="Photographs of the subject."),
                io.String.Input(
                    "prompt",
                    default="a photo of a dog on a beach",
                    multiline=True,
                    tooltip="What the samples are to show, without the rare word; several as a list.",
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
        prompts = [*dict.fromkeys(prompt)]
        adapters = by_adapter(batches, len(prompts))
        names = labels_of(single_value("labels", labels), len(adapters), len(prompts))
        real, prefix = pictures_of("references", references), single_value("filename_prefix", filename_prefix)
        require_output_prefix(prefix)
        by_dino = open_embedder(
            "dino", single_value("dino", dino), dino_vision and single_value("dino_vision", dino_vision)
        )
        by_clip = open_embedder("clip_score", single_value("clip", clip))
        if by_dino is None and by_clip is None:
            raise ValueError(none_chosen(("dino", "clip_score")))
        encoders = [by for by in (by_dino, by_clip) if by is not None]
        embed = Embeddings((sum(map(len, batches)) + len(real)) * len(encoders))
        table = [scored(samples, prompts, real, embed, by_dino, by_clip) for samples in adapters]
        note = cut_off(by_clip, prompts) if by_clip else ""
        path = output_file(prefix, ".csv")
        write_atomically([as_csv(names, table).encode()], path)
        report = f"{in_words(names, table)}{note}\nwritten to {output_name(path)}"
        sheet = to_image(drawn(adapters, names, table))
        return io.NodeOutput(sheet, report, output_name(path), ui={"text": (report,)})


def by_adapter(batches: list[list[Tensor]], prompts: int) -> list[list[list[Tensor]]]:
    """Each adapter's batches, one of each prompt.

    Raises:
        ValueError: they do not come out even.
    """
    if len(batches) % prompts:
        raise ValueError(
            f"images has {len(batches)} batches for {prompts} prompts; give as many to each adapter, one of each prompt"
        )
    return [batches[start : start + prompts] for start in range(0, len(batches), prompts)]


def scored(
    samples: list[list[Tensor]], prompts: list[str], real: list[Tensor], embed: Embeddings, by_dino: Embedder | None,
    by_clip: Embedder | None,
) -> list[Score]:  # fmt: skip
    """Of one adapter: every picture counts alike for DINO, CLIP-I and CLIP-T, every prompt for DIV."""
    counts = [len(some) for some in samples]
    followed = [prompt_score(by_clip, embed, *pair) for pair in zip(samples, prompts, strict=True)] if by_clip else []
    return [
        *(
            over_prompts([subject_score(name, by, embed, some, real) for some in samples], counts)
            for name, by in (("DINO", by_dino), ("CLIP-I", by_clip))
        ),
        over_prompts(followed or [Score("CLIP-T", NOT_MEASURED)], counts),
        over_prompts([spread(by_dino, embed, some) for some in samples], [1] * len(samples)),
    ]


def over_prompts(found: Sequence[Score], weights: Sequence[int]) -> Score:
    """The mean of what was measured."""
    measured = [pair for pair in zip(found, weights, strict=False) if not math.isnan(pair[0].value)]
    if len(measured) < 2:
        return measured[0][0] if measured else found[0]
    total = sum(weight for _, weight in measured)
    return replace(measured[0][0], value=sum(score.value * weight for score, weight in measured) / total)


def labels_of(text: str, count: int, prompts: int = 1) -> list[str]:
    """A name for each adapter.

    Raises:
        ValueError: there are fewer or more, two are equal, or one cannot be written into a file.
    """
    names = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(names) != count:
        each = f" for each of {prompts} prompts" if prompts > 1 else ""
        raise ValueError(
            f"labels names {len(names)} ({', '.join(names)}), images has {count} batches{each}; give a line to each, "
            "and join batches by Create List: Image Batch makes one of them"
        )
    if unwritable := [name for name in names if not name.isprintable()]:
        raise ValueError(f"labels has {unwritable[0]!r}, which cannot be written; leave out control characters")
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"labels has {twice[0]!r} twice; give each batch a name of its own")
    return names


def spread(by: Embedder | None, embed: Embeddings, samples: list[Tensor]) -> Score:
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
        by = f"by {first.encoder}{compare_to_ceiling(first.ceiling)}"
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
    """A row for each adapter; what was not measured is empty. All in quotes: where a semicolon parts cells, it could
    else make two of a label."""
    file = text_io.StringIO()
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["name", *(f"{s.name}{extra}" for s in table[0] for extra in ("", " ceiling", " encoder"))])
    for name, row in zip(names, table, strict=True):
        cells = [cell for s in row for cell in (_number(s.value), _number(s.ceiling), _as_text(s.encoder))]
        writer.writerow([_as_text(name), *cells])
    return file.getvalue()


def _as_text(name: str) -> str:
    """A name that table programs do not compute: labels and folders come from others."""
    return f"'{name}" if name[:1] in FORMULA else name


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def drawn(
    adapters: Sequence[Sequence[Sequence[Tensor]]], names: Sequence[str], table: Sequence[Sequence[Score]]
) -> Image.Image:  # fmt: skip
    """A column for each adapter, the same rows for each prompt."""
    prompts = len(adapters[0])
    each = min(max(1, SHOWN // prompts), max(len(some) for samples in adapters for some in samples))
    cells = [
        [_picture(samples[prompt][row]) if row < len(samples[prompt]) else None for samples in adapters]
        for prompt in range(prompts)
        for row in range(each)
    ]
    below = ["\n".join(f"{s.name} {s.value:.3f}" for s in row if not math.isnan(s.value)) for row in table]
    return image_grid(cells, told_apart(names, 15), below=below, side=256, text=15)


def _picture(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().cpu().numpy().astype(np.uint8))
