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
from _harness import Aim, Column, Row
from _kept import Kept, digest
from _personalised import Made, Ours, Stock, Task, untouched
from torch import Tensor

SEEDS = 4
"""Pictures of each scene."""
ANYBODY = 24
"""Pictures of the class."""
CLASS_IMAGES = 20
FIRST = 40
"""Held-out people before this one were used to choose settings; the report is on others."""

SAME_TIME, REAL = "stock_same_time", "real"

EVERYWHERE = "all linear and convolution"
FALLING = {"lr_scheduler": "cosine"}


def lora(rank: int = 8, **more: Any) -> Ours:
    """LoRA in every layer; the rate was chosen on other people."""
    inputs = {"rank": rank, "alpha": float(rank), "targets": EVERYWHERE, "learning_rate": 5e-3}
    return Ours("MethodLoRA", inputs, options=FALLING, **more)


ROWS: dict[str, Any] = {
    "base": untouched,
    **{f"lora_{rank}": lora(rank) for rank in (1, 4, 8)},
    "lora_8_prior": lora(prior=True),
    "lora_8_400": lora(steps=400),
    "lidb": Ours("MethodLiDB", options=FALLING),
    **{f"para_{rank}": Ours("MethodPaRa", {"rank": rank}, options=FALLING) for rank in (1, 4, 8)},
    "full": Ours("MethodDreamBooth", {"learning_rate": 2e-3}, options=FALLING),
    "full_prior": Ours("MethodDreamBooth", {"learning_rate": 2e-3}, options=FALLING, prior=True),
    **{f"hollow_{f}": lora(hollow={"fraction": f, "samples": 400}) for f in (0.2, 0.4, 0.6, 0.8)},
    "textual_inversion": Ours("MethodTextualInversion", {"token": "sksface", "initializer_word": "face"}),
    "stock_same_steps": Stock(steps=100, batch_size=4),
    "stock_500": Stock(),
}
AIMS = (
    Aim("base", "prompt_fidelity", 0.85, least=True),
    Aim("lora_8_400", "identity", 0.8, least=True),
    Aim("lora_8_400", "prompt_fidelity_to_base", -0.1, least=True),
    Aim("lora_8", "identity_to_stock_500", 0.0, least=True),
    Aim("lora_8", "prompt_fidelity_to_stock_500", 0.0, least=True),
    Aim("lora_8_prior", "class_prior_to_lora_8", 0.0, least=True),
)
COSTS = ("seconds", "steps", "pictures", "parameters", "file_bytes")
FIGURES = ("identity", "prompt_fidelity", "diversity", "class_prior", "clip_i")

COLUMNS = (
    *(Column(name.replace("_", " "), name, lambda value: f"{value:.3f}") for name in FIGURES),
    *(Column(f"± {name.split('_')[0]}", f"{name}_std", lambda value: f"{value:.3f}") for name in FIGURES[:2]),
    Column("rank corr.", "rank_correlation", lambda value: f"{value:.2f}"),
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
        if row == REAL:
            return self.drawn(number)
        made = row(self.task, references)
        pictures, anybody = self.of_base(number) if row is untouched else self.sampled(made, number)
        figures = self.figures(pictures, references, shown)
        spread = [self.judge.people_spread(faces) for faces in (anybody, self.of_base(number)[1])]
        figures["class_prior"] = spread[0] / spread[1]
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
            "clip_i": self.clip_i(pictures.flatten(0, 1), references),
        }

    def clip_i(self, pictures: Tensor, references: Tensor) -> float:
        """By the pack's node and the world's CLIP_VISION."""
        given = {"images": pictures, "references": references, "clip_vision": self.encoder}
        return self.task.call("SubjectFidelity", **given)[1]

    def drawn(self, number: int) -> tuple[Row, Tensor]:
        """The same figures of the generator's own pictures: as good as it gets."""
        shown = self.task_of.subjects(number + 1)[number]
        pictures = torch.stack([self.judge.own_pictures(shown, c, SEEDS) for c in self.task_of.CAPTIONS])
        figures = self.figures(pictures, self.task_of.references(shown), shown)
        return figures | {"class_prior": 1.0 / self.judge.people_spread(self.of_base(number)[1])}, pictures[:, 0]


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
    everything: list[Row] = []
    for name in chosen.rows or [*ROWS, SAME_TIME, REAL]:
        taken[name] = REAL if name == REAL else same_time(done) if name == SAME_TIME else ROWS[name]
        rows = kept.rows(name, taken[name], people)
        done[name] = summary(name, rows)
        done[name]["rank_correlation"] = rank_correlation(rows)
        everything += rows
    for other in ("base", "stock_500", "lora_8"):
        add_differences(done, other)
    shown = {name: kept.picture(name, row, people[0]) for name, row in taken.items()}
    draw_sheet(bench, shown, people[0], chosen.state / "sheet.png")
    together = {"name": "all rows", "rank_correlation": rank_correlation(everything)}
    return [*done.values(), together]


def add_differences(done: dict[str, Row], other: str) -> None:
    """By how much each row's figures are above the other's."""
    for row in done.values():
        if other in done:
            row.update({f"{figure}_to_{other}": row[figure] - done[other][figure] for figure in FIGURES})


def rank_correlation(rows: list[Row]) -> float | None:
    """Spearman's, of identity and CLIP-I over people: whether the score orders subjects as the oracle does."""
    ranks = [torch.tensor([row[figure] for row in rows]).argsort().argsort() for figure in ("identity", "clip_i")]
    return torch.corrcoef(torch.stack(ranks).float())[0, 1].item() if len(rows) > 2 else None


def same_time(done: dict[str, Row]) -> Stock:
    """The stock trainer with as many steps, to the next ten, as it can do while `lora_8` trains."""
    pace = done["stock_500"]["seconds"] / done["stock_500"]["steps"]
    return Stock(steps=max(10, round(done["lora_8"]["seconds"] / pace, -1)))


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
