"""Quality of personalisation in the small world: who is shown, whether the prompt is followed, what else has changed.

Every row personalises the same held-out people from four pictures each; the oracle judges. See README.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import _harness as harness
import torch
from _chart import curves
from _harness import Column, Row
from _kept import Kept, digest
from _order import ORDERS, of_rows, of_subjects
from _personalised import Made, Task, untouched
from _rows import AIMS, FIRST, REAL, ROWS, SAME_TIME, same_time
from torch import Tensor

SEEDS = 4
"""Pictures of each scene."""
ANYBODY = 24
"""Pictures of the class."""
CLASS_IMAGES = 20
COSTS = ("seconds", "steps", "pictures", "parameters", "file_bytes", "taken_out")
FIGURES = ("identity", "prompt_fidelity", "diversity", "class_prior", "class_identity", "clip_i", "pres", "div")

COLUMNS = (
    *(Column(name.replace("_", " "), name, lambda value: f"{value:.3f}") for name in FIGURES),
    *(Column(f"± {name.split('_')[0]}", f"{name}_std", lambda value: f"{value:.3f}") for name in FIGURES[:2]),
    *(Column(f"r {score}", f"rank_{score}", lambda value: f"{value:.2f}") for score in ORDERS),
    Column("taken out", "taken_out", lambda value: f"{value:.0%}"),
    Column("numbers", "parameters", lambda value: f"{value:,}"),
    Column("file bytes", "file_bytes", lambda value: f"{value:,}"),
    Column("seconds", "seconds", lambda value: f"{value:.1f}"),
    Column("steps", "steps"),
    Column("pictures", "pictures", lambda value: f"{value:,}"),
)


class Bench:
    """The loaded base, the judge, and what both need."""

    def __init__(self, folder: Path) -> None:
        pack = harness.devkit("pack")
        pack.import_comfyui()
        self.world = pack.load_world().__name__
        self.task_of, self.model = self.module("task"), self.module("base.model")
        scores, oracle, vision = (self.module(name) for name in ("scores", "oracle.kept", "vision.encoder"))
        self.judge, self.encoder = scores.Judge(oracle.kept(), self.task_of.REFERENCES), vision.kept()
        weights = [part.WEIGHTS for part in (self.module("base.checkpoint"), oracle, vision)]
        sources = [Path(part.__file__) for part in (scores, self.task_of)]
        self.digest = digest(*(path.read_bytes() for path in [*weights, *sources]))
        base = self.model.load(folder / f"small_world_{self.digest}.safetensors")
        task = Task(base, harness.devkit("call").caller(), self.task_of.PROMPT, self.task_of.CLASS_PROMPT, [])
        began = time.perf_counter()
        images = [self.model.sample(base, [task.class_prompt], 1000 + number) for number in range(CLASS_IMAGES)]
        self.task = replace(task, class_images=images, class_seconds=time.perf_counter() - began)

    def module(self, name: str) -> Any:
        return import_module(f"{self.world}.{name}")

    def run(self, row: Callable[..., Made], number: int) -> tuple[Row, Tensor]:
        """Figures of one person, and a picture of each scene."""
        shown = self.task_of.subjects(number + 1)[number]
        references = self.task_of.references(shown)
        made = untouched(self.task, None) if row in (REAL, untouched) else row(self.task, references)
        pictures, anybody = self.of_base(number) if row in (REAL, untouched) else self.sampled(made, number)
        if row == REAL:
            pictures = torch.stack([self.judge.own_pictures(shown, c, SEEDS) for c in self.task_of.CAPTIONS])
        figures = self.figures(pictures, references, shown) | self.of_class(anybody, references, number)
        figures |= self.by_encoder(pictures, anybody, references)
        return figures | {name: getattr(made, name) for name in COSTS}, pictures[:, 0]

    def sampled(self, made: Made, seed: int) -> tuple[Tensor, Tensor]:
        """[scenes, SEEDS, 64, 64, 3]: the person of `made` in each scene; [ANYBODY, 64, 64, 3]: the class."""
        scenes = [caption.replace(self.task.class_prompt, made.prompt) for caption in self.task_of.CAPTIONS]
        prompts = [scene for scene in scenes for _ in range(SEEDS)]
        base = replace(self.task.base, model=made.model, clip=made.clip)
        pictures = self.model.sample(base, prompts + [self.task.class_prompt] * ANYBODY, seed)
        return pictures[: len(prompts)].unflatten(0, (len(scenes), SEEDS)), pictures[len(prompts) :]

    @cache  # noqa: B019  # there is one bench, and it lives as long as the program
    def of_base(self, seed: int) -> tuple[Tensor, Tensor]:
        """What it shows untouched."""
        return self.sampled(untouched(self.task, None), seed)

    def figures(self, pictures: Tensor, references: Tensor, shown: Any) -> Row:
        """Means over the scenes."""
        captions = self.task_of.CAPTIONS
        pairs = list(zip(pictures, captions, strict=True))
        return {
            "identity": statistics.mean(self.judge.identity(p, references, c) for p, c in pairs),
            "prompt_fidelity": statistics.mean(self.judge.prompt_fidelity(p, c) for p, c in pairs),
            "diversity": statistics.mean(self.judge.diversity(p, c, shown) for p, c in pairs),
        }

    def of_class(self, anybody: Tensor, references: Tensor, number: int) -> Row:
        """How different the people are that the class prompt shows, beside the base's, and how alike the person."""
        spread = [self.judge.people_spread(faces) for faces in (anybody, self.of_base(number)[1])]
        prompt = self.task_of.CLASS_PROMPT
        return {
            "class_prior": spread[0] / spread[1],
            "class_identity": self.judge.identity(anybody, references, prompt),
        }

    def by_encoder(self, pictures: Tensor, anybody: Tensor, references: Tensor) -> Row:
        """The pack's scores by the world's CLIP_VISION: what stands in for DINO too."""
        from hyperbooth.models.scores import diversity, prior_preservation

        given = {"images": pictures.flatten(0, 1), "references": references, "clip_vision": self.encoder}
        return {
            "clip_i": self.task.call("SubjectFidelity", **given)[1],
            "pres": prior_preservation(self.embedded(anybody), self.embedded(references)),
            "div": statistics.mean(diversity(self.embedded(scene)) for scene in pictures),
        }

    @torch.inference_mode()
    def embedded(self, pictures: Tensor) -> Tensor:
        return self.encoder.encode_image(pictures).image_embeds


def summary(name: str, rows: list[Row]) -> Row:
    """Mean and spread over people."""
    row: Row = {"name": name, "people": len(rows)}
    for figure in FIGURES:
        values = [r[figure] for r in rows]
        row[figure] = statistics.mean(values)
        row[f"{figure}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    for cost in COSTS:
        if cost in rows[0]:
            row[cost] = statistics.median(r[cost] for r in rows)
    return row


def measure(chosen: argparse.Namespace, bench: Bench) -> list[Row]:
    """Every row, and at last the stock trainer for as long as ours took."""
    kept, people = Kept(chosen.state, bench.digest, bench.run), list(range(chosen.first, chosen.first + chosen.people))
    done: dict[str, Row] = {}
    taken: dict[str, Any] = {}
    everything: list[list[Row]] = []
    for name in chosen.rows or [*ROWS, SAME_TIME, REAL]:
        taken[name] = REAL if name == REAL else same_time(done) if name == SAME_TIME else ROWS[name]
        rows = kept.rows(name, taken[name], people)
        done[name] = summary(name, rows) | of_subjects(rows)
        if taken[name] not in (untouched, REAL):
            everything.append(rows)
    for other in ("base", "stock_500", "lora_8"):
        add_differences(done, other)
    shown = {name: kept.picture(name, row, people[0]) for name, row in taken.items()}
    draw_sheet(bench, shown, people[0], chosen.state / "sheet.png")
    draw_hollow(done, chosen.state / "hollow.png")
    return [*done.values(), {"name": "subjects of all rows"} | of_rows(everything)]


def add_differences(done: dict[str, Row], other: str) -> None:
    """By how much each row's figures are above the other's, and what share of the other's identity it has."""
    for row in done.values():
        if other in done:
            row.update({f"{figure}_to_{other}": row[figure] - done[other][figure] for figure in FIGURES})
            row[f"identity_of_{other}"] = row["identity"] / done[other]["identity"]


def draw_hollow(done: dict[str, Row], path: Path) -> None:
    """Identity and prompt fidelity over what is taken out, from plain LoRA on: Hollowed Net's Figure 5."""
    rows = [row for name, row in done.items() if name == "lora_8" or name.startswith("hollow_")]
    rows.sort(key=lambda row: row["taken_out"])
    if len(rows) > 1:
        figures = ("identity", "prompt_fidelity")
        lines = {f: [(row["taken_out"], row[f], row[f"{f}_std"]) for row in rows] for f in figures}
        curves(path, "share of the U-Net taken out", lines)


def draw_sheet(bench: Bench, shown: dict[str, Tensor], number: int, path: Path) -> None:
    """One person by every row: name -> [scenes, 64, 64, 3]."""
    from PIL import Image

    def images(pictures: Tensor) -> list[Any]:
        return [Image.fromarray((p.clamp(0, 1).numpy() * 255).round().astype("uint8")) for p in pictures]

    from hyperbooth.trainers.sheet import grid

    references = images(bench.task_of.references(bench.task_of.subjects(number + 1)[number]))
    cells = [references, *map(images, shown.values())]
    grid(cells, bench.task_of.CAPTIONS, ["references", *shown], side=128).save(path, optimize=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    parser.add_argument("--rows", type=lambda text: text.split(","), metavar="A,B", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--people", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=FIRST, help="number of the first held-out person")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--state", type=Path, default=harness.ROOT / "demo_output" / "quality", help="figures so far")
    chosen = parser.parse_args()
    names = [*ROWS, SAME_TIME, REAL]
    if unknown := set(chosen.rows or ()) - set(names):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if SAME_TIME in (chosen.rows or ()) and {"lora_8", "stock_500"} - set(chosen.rows[: chosen.rows.index(SAME_TIME)]):
        parser.error(f"{SAME_TIME} needs lora_8 and stock_500 before it")
    return chosen


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    try:
        bench = Bench(chosen.state)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    rows = measure(chosen, bench)
    print(harness.table(rows, COLUMNS))
    print(*(aim.verdict({row["name"]: row for row in rows}) for aim in AIMS), sep="\n")
    whole = not chosen.rows and chosen.people >= 20 and chosen.first >= FIRST
    paths = ([harness.RESULTS / "quality.json"] if whole else []) + ([chosen.json] if chosen.json else [])
    harness.write_json("quality", harness.machine(chosen.threads), rows, *paths)


if __name__ == "__main__":
    main()
