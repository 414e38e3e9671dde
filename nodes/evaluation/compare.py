"""Node that compares adapters: their samples in one image grid, their scores, and the best of each metric."""

import csv
import io as text_io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ...models.files.safetensors_io import write_atomically
from ...models.metrics import scores
from ...trainers.reporting.image_grid import image_grid, readable_names
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
    images_of,
    no_encoder_message,
)
from .prompt_fidelity import prompt_score, truncation_note
from .subject_fidelity import subject_score

SHOWN = 6
"""Images of each adapter in the grid, if there are no more prompts; all count for the scores."""
FORMULA = (*"=+-@", *map(chr, (0xFF1D, 0xFF0B, 0xFF0D, 0xFF20)))
"""First characters of a formula in a spreadsheet, full-width ones too."""


class CompareSheet(Scoring):
    """Score the samples of several adapters, as an image grid, a report and a CSV file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothCompareSheet",
            display_name="Compare Sheet",
            category=CATEGORY,
            description="Shows samples of several adapters from the same prompt and seeds in one image grid, with "
            "their scores: DINO, CLIP-I, CLIP-T, DIV. Reports the best of each metric, and writes the values as CSV.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="A list with one batch of samples per adapter, all of the prompt: Create List. With "
                    "several prompts: all batches of the first adapter in the prompts' order, then those of the next.",
                ),
                io.String.Input(
                    "labels",
                    default="first\nsecond",
                    multiline=True,
                    tooltip="Names of the adapters, one per line, in the order of the list.",
                ),
                io.Image.Input("references", tooltip="Real images of the subject."),
                io.String.Input(
                    "prompt",
                    default="a photo of a dog on a beach",
                    multiline=True,
                    tooltip="What the samples are to show, without the rare word; several as a list.",
                ),
                dino_input(),
                clip_input("CLIP-I and CLIP-T"),
                io.String.Input(
                    "filename_prefix",
                    default="scores/compare",
                    tooltip="Folder and start of the CSV's name, below the output folder.",
                ),
                dino_vision_input(),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="The image grid, with scores below each column."),
                io.String.Output(display_name="report", tooltip="The scores of each adapter, the best first."),
                io.String.Output(display_name="path", tooltip="The CSV, below the output folder."),
            ],
        )

    @classmethod
    def execute(
        cls, images: list[Tensor], labels: list[str], references: list[Tensor], prompt: list[str], dino: list[str],
        clip: list[str], filename_prefix: list[str], dino_vision: list[Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        batches = [images_of(f"images, batch {n}", [batch]) for n, batch in enumerate(images, 1)]
        prompts = [*dict.fromkeys(prompt)]
        adapters = group_by_adapter(batches, len(prompts))
        names = parse_labels(single_value("labels", labels), len(adapters), len(prompts))
        real, prefix = images_of("references", references), single_value("filename_prefix", filename_prefix)
        require_output_prefix(prefix)
        by_dino = open_embedder(
            "dino", single_value("dino", dino), dino_vision and single_value("dino_vision", dino_vision)
        )
        by_clip = open_embedder("clip_score", single_value("clip", clip))
        if by_dino is None and by_clip is None:
            raise ValueError(no_encoder_message(("dino", "clip_score")))
        encoders = sum(by is not None for by in (by_dino, by_clip))
        embed = Embeddings((sum(map(len, batches)) + len(real)) * encoders)
        task = ScoringTask(prompts=prompts, references=real, embed=embed, dino=by_dino, clip=by_clip)
        table = [score_adapter(samples, task) for samples in adapters]
        note = truncation_note(by_clip, prompts) if by_clip else ""
        with output_file(prefix, ".csv") as path:
            write_atomically([csv_text(names, table).encode()], path)
        report = f"{report_text(names, table)}{note}\nwritten to {output_name(path)}"
        sheet = to_image(score_grid(adapters, names, table))
        return io.NodeOutput(sheet, report, output_name(path), ui={"text": (report,)})


def group_by_adapter(batches: list[list[Tensor]], prompts: int) -> list[list[list[Tensor]]]:
    """Return each adapter's batches, one for each prompt.

    Raises:
        ValueError: the number of batches is not a multiple of the number of ``prompts``.
    """
    if len(batches) % prompts:
        raise ValueError(
            f"images has {len(batches)} batches for {prompts} prompts; give as many to each adapter, one of each prompt"
        )
    return [batches[start : start + prompts] for start in range(0, len(batches), prompts)]


@dataclass(frozen=True, kw_only=True)
class ScoringTask:
    """What the samples of every adapter are scored against.

    Args:
        prompts: the distinct prompts, in the order of the batches.
        references: real images ``[H, W, 3]`` of the subject.
        embed: embeds images.
        dino: encoder for DINO and DIV, or None.
        clip: encoder for CLIP-I and CLIP-T, or None.
    """

    prompts: Sequence[str]
    references: list[Tensor]
    embed: Embeddings
    dino: Embedder | None
    clip: Embedder | None


def score_adapter(samples: list[list[Tensor]], task: ScoringTask) -> list[Score]:
    """Return DINO, CLIP-I, CLIP-T and DIV of one adapter.

    Every image has the same weight in DINO, CLIP-I and CLIP-T, every prompt in DIV.

    Args:
        samples: one list of images ``[H, W, 3]`` for each prompt.
        task: prompts, references and encoders.
    """
    counts, embed, clip = [len(images) for images in samples], task.embed, task.clip
    followed = [prompt_score(clip, embed, *pair) for pair in zip(samples, task.prompts, strict=True)] if clip else []
    return [
        *(
            mean_over_prompts([subject_score(name, by, embed, images, task.references) for images in samples], counts)
            for name, by in (("DINO", task.dino), ("CLIP-I", clip))
        ),
        mean_over_prompts(followed or [Score("CLIP-T", NOT_MEASURED)], counts),
        mean_over_prompts([diversity_score(task.dino, embed, images) for images in samples], [1] * len(samples)),
    ]


def mean_over_prompts(found: Sequence[Score], weights: Sequence[int]) -> Score:
    """Return the weighted mean of the scores that were measured."""
    measured = [pair for pair in zip(found, weights, strict=False) if not math.isnan(pair[0].value)]
    if len(measured) < 2:
        return measured[0][0] if measured else found[0]
    total = sum(weight for _, weight in measured)
    return replace(measured[0][0], value=sum(score.value * weight for score, weight in measured) / total)


def parse_labels(text: str, count: int, prompts: int = 1) -> list[str]:
    """Return the name of each adapter, one for each line that is not empty.

    Args:
        text: the lines.
        count: number of adapters.
        prompts: number of prompts, for the message.

    Raises:
        ValueError: there are fewer or more names, two are equal, or one holds control characters.
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


def diversity_score(by: Embedder | None, embed: Embeddings, samples: list[Tensor]) -> Score:
    """Return DIV of the samples of one prompt; not measured for fewer than two.

    Args:
        by: the DINO encoder, or None.
        embed: embeds images.
        samples: images ``[H, W, 3]``.
    """
    if by is None or len(samples) < 2:
        return Score("DIV", NOT_MEASURED)
    return Score("DIV", scores.diversity(embed(by, samples)), by.name)


def report_text(names: Sequence[str], table: Sequence[Sequence[Score]]) -> str:
    """Return a line for each metric that was measured: the best adapter first, with the ceiling and the encoder."""
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
    """Name the best adapters by the printed digits; empty for a single adapter."""
    best = [name for name, score in ranked if f"{score.value:.4f}" == f"{ranked[0][1].value:.4f}"]
    if len(ranked) == 1:
        return ""
    if len(best) == len(ranked):
        return "equal. "
    return f"{' and '.join(best)} {'is' if len(best) == 1 else 'are'} best. "


def csv_text(names: Sequence[str], table: Sequence[Sequence[Score]]) -> str:
    """Return CSV with a row for each adapter; values that were not measured are empty.

    All cells are quoted: programs that separate cells by semicolons would split a label at one.
    """
    file = text_io.StringIO()
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["name", *(f"{s.name}{extra}" for s in table[0] for extra in ("", " ceiling", " encoder"))])
    for name, row in zip(names, table, strict=True):
        cells = [cell for s in row for cell in (_number(s.value), _number(s.ceiling), _as_text(s.encoder))]
        writer.writerow([_as_text(name), *cells])
    return file.getvalue()


def _as_text(name: str) -> str:
    """Return a name that spreadsheets do not evaluate as a formula: labels and folder names are untrusted."""
    return f"'{name}" if name[:1] in FORMULA else name


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def score_grid(
    adapters: Sequence[Sequence[Sequence[Tensor]]], names: Sequence[str], table: Sequence[Sequence[Score]]
) -> Image.Image:  # fmt: skip
    """Draw a column of samples for each adapter, with the same number of rows for each prompt.

    Args:
        adapters: for each adapter, for each prompt, images ``[H, W, 3]``.
        names: of the adapters.
        table: the scores of each adapter, written below its column.
    """
    prompts = len(adapters[0])
    each = min(max(1, SHOWN // prompts), max(len(some) for samples in adapters for some in samples))
    cells = [
        [_pil_image(samples[prompt][row]) if row < len(samples[prompt]) else None for samples in adapters]
        for prompt in range(prompts)
        for row in range(each)
    ]
    below = ["\n".join(f"{s.name} {s.value:.3f}" for s in row if not math.isnan(s.value)) for row in table]
    return image_grid(cells, above=readable_names(names, 15), below=below, side=256, font_size=15)


def _pil_image(image: Tensor) -> Image.Image:
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().cpu().numpy().astype(np.uint8))
