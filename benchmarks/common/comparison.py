"""Compare methods of personalization on the same people: figures over people, a table, an image grid, a JSON file."""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import harness
from common.harness import Aim, Column, Row
from common.methods import untouched
from common.oracle_metrics import CODED, COSTS, FIGURES, REAL, SCENES, Evaluator
from common.rank_correlation import ORDERS, correlate_methods, correlate_rows, correlate_subjects
from common.result_cache import FAILED, ResultCache
from torch import Tensor

from tools.small_world.scene import task

FIRST, PEOPLE = 41, 20
"""The people reported; held-out people before these were used to choose settings, and the demo shows number 40."""
COLUMNS = (
    *(Column(name.replace("_", " "), name, lambda value: f"{value:.3f}") for name in FIGURES),
    *(Column(f"± {name.split('_')[0]}", f"{name}_std", lambda value: f"{value:.3f}") for name in FIGURES[:2]),
    *(Column(f"r {score}", f"rank_{score}", lambda value: f"{value:.2f}") for score in ORDERS),
    Column("removed", "taken_out", lambda value: f"{value:.0%}"),
    Column("parameters", "parameters", lambda value: f"{value:,}"),
    Column("file bytes", "file_bytes", lambda value: f"{value:,}"),
    Column("seconds", "seconds", lambda value: f"{value:.1f}"),
    Column("steps", "steps"),
    Column("images", "pictures", lambda value: f"{value:,}"),
    Column("failed", FAILED),
)
Done = dict[str, Row]


@dataclass(frozen=True)
class Derived:
    """Make a method from the figures of other rows.

    Args:
        needs: names of those rows; they come before it.
        make: their figures -> the method.
    """

    needs: tuple[str, ...]
    make: Callable[[Done], Any]


@dataclass(frozen=True)
class Comparison:
    """Benchmark personalization methods against each other.

    Args:
        name: name of its results file.
        doc: description for ``--help``.
        methods: name -> method, see :mod:`.methods`.
        aims: limits on figures, reported as met or not.
        others: rows to which every row is compared.
        draw: draws charts of the rows into a folder.
        check: raises FileNotFoundError if a network is missing.
    """

    name: str
    doc: str
    methods: Mapping[str, Any]
    aims: Sequence[Aim]
    others: tuple[str, ...]
    draw: Callable[[Done, Path], None] = lambda done, folder: None
    check: Callable[[], object] = lambda: None

    def main(self) -> None:
        """Measure all rows, print the table and write the report."""
        chosen = self.arguments()
        torch.set_num_threads(chosen.threads)
        try:
            self.check()
            evaluator = Evaluator(chosen.state, chosen.threads)
        except FileNotFoundError as error:  # a network of the small world
            raise SystemExit(str(error)) from error
        rows = self.measure(chosen, evaluator)
        print(harness.table(rows, COLUMNS))
        print(*(aim.verdict({row["name"]: row for row in rows}) for aim in self.aims), sep="\n")
        whole = not chosen.rows and (chosen.people, chosen.first) == (PEOPLE, FIRST)
        paths = [harness.RESULTS / f"{self.name}.json"] if whole else []
        harness.write_json(
            self.name, harness.machine(chosen.threads), rows, *paths, *([chosen.json] if chosen.json else [])
        )

    def measure(self, chosen: argparse.Namespace, evaluator: Evaluator) -> list[Row]:
        """Measure every chosen row and return the rows of the report."""
        cache = ResultCache(chosen.state, evaluator.digest, evaluator.run)
        people = list(range(chosen.first, chosen.first + chosen.people))
        done: Done = {}
        methods: dict[str, Any] = {}
        everything: list[list[Row]] = []
        shown: list[list[Row]] = []
        for name in chosen.rows or self.methods:
            method = self.methods[name]
            if isinstance(method, Derived):
                if missing := [need for need in method.needs if "identity" not in done[need]]:
                    done[name] = {"name": name, "skipped": f"no person has figures of {' and '.join(missing)}"}
                    continue
                method = method.make(done)
            methods[name] = method
            rows = cache.rows(name, method, people)
            whole = [row for row in rows if FAILED not in row]
            done[name] = summary(name, whole, len(rows) - len(whole)) | correlate_subjects(whole)
            if method not in (REAL, CODED):
                shown.append(rows)
            if method not in (untouched, REAL, CODED):
                everything.append(whole)
        for other in self.others:
            add_differences(done, other)
        images = {name: cache.image(name, method, people[0]) for name, method in methods.items()}
        there = {name: image for name, image in images.items() if image is not None}
        draw_sheet(evaluator, there, people[0], chosen.state / "sheet.png")
        self.draw(done, chosen.state)
        orders = {"subjects of all rows": correlate_rows(everything), "rows of all subjects": correlate_methods(shown)}
        return [*done.values(), *({"name": name} | order for name, order in orders.items())]

    def arguments(self) -> argparse.Namespace:
        """Parse the command line."""
        parser = argparse.ArgumentParser(description=self.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        state = harness.ROOT / "demo_output" / self.name
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
        parser.add_argument(
            "--rows", type=lambda text: text.split(","), metavar="A,B", help=f"of {', '.join(self.methods)}"
        )
        parser.add_argument("--people", type=int, default=PEOPLE, help="number of people")
        parser.add_argument("--first", type=int, default=FIRST, help="index of the first held-out person")
        parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
        parser.add_argument("--state", type=Path, default=state, help="folder of cached figures")
        chosen = parser.parse_args()
        for name, least in (("people", 1), ("first", 0), ("threads", 1)):
            if getattr(chosen, name) < least:
                parser.error(f"--{name} is {getattr(chosen, name)}; give {least} or more")
        rows = chosen.rows or []
        if unknown := set(rows) - set(self.methods):
            parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(self.methods)}")
        for position, name in enumerate(rows):
            needs = getattr(self.methods[name], "needs", ())
            if set(needs) - set(rows[:position]):
                parser.error(f"{name} needs {' and '.join(needs)} before it")
        return chosen


def summary(name: str, rows: Sequence[Row], failed: int) -> Row:
    """Return mean and standard deviation of the figures over people, median costs, and the number of failures."""
    if not rows:
        return {"name": name, "people": 0, FAILED: failed, "skipped": "it failed for every person"}
    row: Row = {"name": name, "people": len(rows), FAILED: failed}
    for figure in (*FIGURES, *SCENES):
        values = [r[figure] for r in rows]
        row[figure] = statistics.mean(values)
        row[f"{figure}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    for cost in COSTS:
        row[cost] = statistics.median_low(r[cost] for r in rows)
    return row


def add_differences(done: Done, other: str) -> None:
    """Add each row's differences from another row, and its identity and seconds as fractions of that row's."""
    reference = done.get(other, {})
    for row in done.values():
        if "identity" in row and "identity" in reference:
            row.update({f"{figure}_to_{other}": row[figure] - reference[figure] for figure in FIGURES})
            if reference["identity"] > 0.1:
                row[f"identity_of_{other}"] = row["identity"] / reference["identity"]
            if reference["seconds"]:
                row[f"seconds_of_{other}"] = row["seconds"] / reference["seconds"]


def draw_sheet(evaluator: Evaluator, images: dict[str, Tensor], person: int, path: Path) -> None:
    """Draw one person's images by every row, name -> [scenes, 64, 64, 3], as an image grid."""
    from PIL import Image

    def to_pil(row: Tensor) -> list[Any]:
        return [Image.fromarray((p.clamp(0, 1).numpy() * 255).round().astype("uint8")) for p in row]

    from hyperbooth.trainers.reporting.image_grid import image_grid

    cells = [to_pil(evaluator.references(person)), *map(to_pil, images.values())]
    page = image_grid(cells, above=task.CAPTIONS, left=["references", *images], side=128)
    page.save(path, optimize=True)
