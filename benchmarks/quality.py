"""Quality of personalisation in the small world: who is shown, whether the prompt is followed, what else has changed.

Every row personalises the same held-out people from four pictures each; the oracle judges. See README.md.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import _harness as harness
import torch
from _harness import Aim, Column, Row
from _personalised import Made, Ours, Stock, Task, untouched
from torch import Tensor

SEEDS = 4
"""Pictures of each scene."""
ANYBODY = 24
"""Pictures of the class."""
CLASS_IMAGES = 20
FIRST = 40
"""Held-out people before this one were used to choose settings; the report is on others."""

LORA = {"rank": 8, "alpha": 8.0}

ROWS: dict[str, Any] = {
    "base": untouched,
    **{f"lora_{rank}": Ours("MethodLoRA", {"rank": rank, "alpha": float(rank)}) for rank in (1, 4, 8)},
    "lora_8_prior": Ours("MethodLoRA", LORA, prior=True),
    "lidb": Ours("MethodLiDB"),
    **{f"para_{rank}": Ours("MethodPaRa", {"rank": rank}) for rank in (1, 4, 8)},
    "full": Ours("MethodDreamBooth"),
    "full_prior": Ours("MethodDreamBooth", prior=True),
    **{f"hollow_{f}": Ours("MethodLoRA", LORA, hollow={"fraction": f, "samples": 400}) for f in (0.2, 0.4, 0.6, 0.8)},
    "textual_inversion": Ours("MethodTextualInversion", {"token": "sksface", "initializer_word": "face"}),
    "stock_same_steps": Stock(steps=100, batch_size=4),
    "stock_500": Stock(),
}
AIMS = (
    Aim("lora_8", "identity", 0.8, least=True),
    Aim("base", "prompt_fidelity", 0.85, least=True),
)
FIGURES = ("identity", "prompt_fidelity", "diversity", "class_prior", "clip_i")

COLUMNS = (
    *(Column(name.replace("_", " "), name, lambda value: f"{value:.3f}") for name in FIGURES),
    *(Column(f"± {name.split('_')[0]}", f"{name}_std", lambda value: f"{value:.3f}") for name in FIGURES[:2]),
    Column("rank corr.", "rank_correlation", lambda value: f"{value:.2f}"),
    Column("numbers", "parameters", lambda value: f"{value:,}"),
    Column("file bytes", "file_bytes", lambda value: f"{value:,}"),
    Column("seconds", "seconds", lambda value: f"{value:.1f}"),
    Column("steps", "steps"),
)


class Bench:
    """The loaded base, the judge, and what both need."""

    def __init__(self, folder: Path) -> None:
        pack = harness.devkit("pack")
        pack.import_comfyui()
        self.world = pack.load_world().__name__
        model, scores, kept = self.module("base.model"), self.module("scores"), self.module("oracle.kept")
        self.task_of, self.model = self.module("task"), model
        base = model.load(folder / "small_world.safetensors")
        call = harness.devkit("call").caller()
        self.task = Task(base, call, self.task_of.PROMPT, self.task_of.CLASS_PROMPT, [])
        images = [model.sample(base, [self.task.class_prompt], seed) for seed in range(1000, 1000 + CLASS_IMAGES)]
        self.task = replace(self.task, class_images=images)
        self.judge = scores.Judge(kept.kept(), self.task_of.REFERENCES)
        self.encoder = self.module("vision.encoder").kept()

    def module(self, name: str) -> Any:
        return import_module(f"{self.world}.{name}")

    def run(self, row: Callable[..., Made], number: int) -> tuple[Row, Tensor]:
        """Figures of one person, and a picture of each scene."""
        shown = self.task_of.subjects(number + 1)[number]
        references = self.task_of.references(shown)
        made = row(self.task, references)
        pictures, anybody = self.of_base if row is untouched else self.sampled(made)
        figures = self.figures(pictures, references, shown)
        figures["class_prior"] = self.judge.people_spread(anybody) / self.base_spread
        cost = {name: getattr(made, name) for name in ("seconds", "steps", "parameters", "file_bytes")}
        return figures | cost, pictures[:, 0]

    def sampled(self, made: Made) -> tuple[Tensor, Tensor]:
        """[scenes, SEEDS, 64, 64, 3]: the person of `made` in each scene; [ANYBODY, 64, 64, 3]: the class."""
        scenes = [caption.replace(self.task.class_prompt, made.prompt) for caption in self.task_of.CAPTIONS]
        prompts = [scene for scene in scenes for _ in range(SEEDS)]
        base = replace(self.task.base, model=made.model, clip=made.clip)
        pictures = self.model.sample(base, prompts + [self.task.class_prompt] * ANYBODY, seed=0)
        return pictures[: len(prompts)].unflatten(0, (len(scenes), SEEDS)), pictures[len(prompts) :]

    @cached_property
    def of_base(self) -> tuple[Tensor, Tensor]:
        """What it shows untouched."""
        return self.sampled(untouched(self.task, None))

    @cached_property
    def base_spread(self) -> float:
        """How different the base's people are."""
        return self.judge.people_spread(self.of_base[1])

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
        return figures | {"class_prior": 1.0 / self.base_spread}, pictures[:, 0]


def summary(name: str, rows: list[Row]) -> Row:
    """Mean and spread over people."""
    row: Row = {"name": name, "people": len(rows)}
    for figure in FIGURES:
        values = [r[figure] for r in rows]
        row[figure] = statistics.mean(values)
        row[f"{figure}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    for cost in ("seconds", "steps", "parameters", "file_bytes"):
        if cost in rows[0]:
            row[cost] = statistics.median(r[cost] for r in rows)
    return row


class Kept:
    """Figures that were measured already, in a folder; a run that was stopped goes on."""

    def __init__(self, folder: Path, bench: Bench) -> None:
        self.folder, self.bench = folder, bench

    def rows(self, name: str, row: Any, people: list[int]) -> list[Row]:
        """Figures of each person."""
        return [self._one(name, row, number) for number in people]

    def picture(self, name: str, number: int) -> Tensor:
        """[scenes, 64, 64, 3] of that person."""
        return torch.load(self._path(name, number, "pt"), weights_only=True)

    def _one(self, name: str, row: Any, number: int) -> Row:
        path = self._path(name, number, "json")
        if not path.exists():
            figures, pictures = row(number) if name == "real" else self.bench.run(row, number)
            torch.save(pictures, self._path(name, number, "pt"))
            path.write_text(json.dumps(figures))
            words = ", ".join(f"{figure} {figures[figure]:.3f}" for figure in FIGURES)
            print(f"{name}, person {number}: {words}, {figures.get('seconds', 0):.1f} s", flush=True)
        return json.loads(path.read_text())

    def _path(self, name: str, number: int, ending: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{number}.{ending}"


def measure(chosen: argparse.Namespace, bench: Bench) -> list[Row]:
    """Every row, and at last the stock trainer for as long as ours took."""
    kept, people = Kept(chosen.state, bench), list(range(chosen.first, chosen.first + chosen.people))
    names = chosen.rows or [*ROWS, "stock_same_time", "real"]
    done: dict[str, Row] = {}
    everything: list[Row] = []
    for name in names:
        row = bench.drawn if name == "real" else same_time(done) if name == "stock_same_time" else ROWS[name]
        rows = kept.rows(name, row, people)
        done[name] = summary(name, rows)
        done[name]["rank_correlation"] = rank_correlation(rows)
        everything += rows
    draw_sheet(bench, kept, names, people[0], chosen.state / "sheet.png")
    together = {"name": "all rows", "rank_correlation": rank_correlation(everything)}
    return [*done.values(), together]


def rank_correlation(rows: list[Row]) -> float | None:
    """Spearman's, of identity and CLIP-I over people: whether the score orders subjects as the oracle does."""
    ranks = [torch.tensor([row[figure] for row in rows]).argsort().argsort() for figure in ("identity", "clip_i")]
    return torch.corrcoef(torch.stack(ranks).float())[0, 1].item() if len(rows) > 2 else None


def same_time(done: dict[str, Row]) -> Stock:
    """The stock trainer with as many steps as it can do while `lora_8` trains."""
    pace = done["stock_500"]["seconds"] / done["stock_500"]["steps"]
    return Stock(steps=max(1, round(done["lora_8"]["seconds"] / pace)))


def draw_sheet(bench: Bench, kept: Kept, names: list[str], number: int, path: Path) -> None:
    """One person by every row."""
    from PIL import Image

    def images(pictures: Tensor) -> list[Any]:
        return [Image.fromarray((p.clamp(0, 1).numpy() * 255).round().astype("uint8")) for p in pictures]

    from hyperbooth.trainers.sheet import grid

    references = images(bench.task_of.references(bench.task_of.subjects(number + 1)[number]))
    cells = [references, *(images(kept.picture(name, number)) for name in names)]
    grid(cells, bench.task_of.CAPTIONS, ["references", *names], side=128).save(path, optimize=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    parser.add_argument("--rows", type=lambda text: text.split(","), metavar="A,B", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--people", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=FIRST, help="number of the first held-out person")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--state", type=Path, default=harness.ROOT / "demo_output" / "quality", help="figures so far")
    chosen = parser.parse_args()
    if unknown := set(chosen.rows or ()) - ROWS.keys() - {"stock_same_time", "real"}:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
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
    whole = not chosen.rows and chosen.people >= 20
    paths = ([harness.RESULTS / "quality.json"] if whole else []) + ([chosen.json] if chosen.json else [])
    harness.write_json("quality", harness.machine(chosen.threads), rows, *paths)


if __name__ == "__main__":
    main()
