"""Ways to personalize side by side: the same people by each, figures over people, a table, a sheet, a JSON file."""

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
from common.oracle_metrics import CODED, COSTS, FIGURES, REAL, SCENES, Bench
from common.rank_correlation import ORDERS, of_rows, of_subjects, of_ways
from common.result_cache import FAILED, Kept
from torch import Tensor

FIRST, PEOPLE = 41, 20
"""Those reported: held-out people before these were used to choose settings, and the demo shows number 40."""
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
    Column("failed", FAILED),
)
Done = dict[str, Row]


@dataclass(frozen=True)
class Derived:
    """A way that depends on what other rows took.

    Args:
        needs: those rows; they come before it.
        make: their figures -> the way.
    """

    needs: tuple[str, ...]
    make: Callable[[Done], Any]


@dataclass(frozen=True)
class Comparison:
    """A benchmark.

    Args:
        name: of its file of results.
        doc: what it is.
        ways: name -> way, see :mod:`.methods`.
        aims: what is to come out.
        others: rows to which every row is compared.
        draw: charts of the rows, into a folder.
        check: raises FileNotFoundError if something is missing.
    """

    name: str
    doc: str
    ways: Mapping[str, Any]
    aims: Sequence[Aim]
    others: tuple[str, ...]
    draw: Callable[[Done, Path], None] = lambda done, folder: None
    check: Callable[[], object] = lambda: None

    def main(self) -> None:
        """Measure, print, write."""
        chosen = self.arguments()
        torch.set_num_threads(chosen.threads)
        try:
            self.check()
            bench = Bench(chosen.state, chosen.threads)
        except FileNotFoundError as error:  # a network of the small world
            raise SystemExit(str(error)) from error
        rows = self.measure(chosen, bench)
        print(harness.table(rows, COLUMNS))
        print(*(aim.verdict({row["name"]: row for row in rows}) for aim in self.aims), sep="\n")
        whole = not chosen.rows and (chosen.people, chosen.first) == (PEOPLE, FIRST)
        paths = [harness.RESULTS / f"{self.name}.json"] if whole else []
        harness.write_json(
            self.name, harness.machine(chosen.threads), rows, *paths, *([chosen.json] if chosen.json else [])
        )

    def measure(self, chosen: argparse.Namespace, bench: Bench) -> list[Row]:
        """Every row."""
        kept = Kept(chosen.state, bench.digest, bench.run)
        people = list(range(chosen.first, chosen.first + chosen.people))
        done: Done = {}
        taken: dict[str, Any] = {}
        everything: list[list[Row]] = []
        shown: list[list[Row]] = []
        for name in chosen.rows or self.ways:
            way = self.ways[name]
            if isinstance(way, Derived):
                if missing := [need for need in way.needs if "identity" not in done[need]]:
                    done[name] = {"name": name, "skipped": f"nobody has figures of {' and '.join(missing)}"}
                    continue
                way = way.make(done)
            taken[name] = way
            rows = kept.rows(name, way, people)
            whole = [row for row in rows if FAILED not in row]
            done[name] = summary(name, whole, len(rows) - len(whole)) | of_subjects(whole)
            if way not in (REAL, CODED):
                shown.append(rows)
            if way not in (untouched, REAL, CODED):
                everything.append(whole)
        for other in self.others:
            add_differences(done, other)
        images = {name: kept.image(name, way, people[0]) for name, way in taken.items()}
        there = {name: image for name, image in images.items() if image is not None}
        draw_sheet(bench, there, people[0], chosen.state / "sheet.png")
        self.draw(done, chosen.state)
        orders = {"subjects of all rows": of_rows(everything), "rows of all subjects": of_ways(shown)}
        return [*done.values(), *({"name": name} | order for name, order in orders.items())]

    def arguments(self) -> argparse.Namespace:
        """Of the command line."""
        parser = argparse.ArgumentParser(description=self.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        state = harness.ROOT / "demo_output" / self.name
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
        parser.add_argument(
            "--rows", type=lambda text: text.split(","), metavar="A,B", help=f"of {', '.join(self.ways)}"
        )
        parser.add_argument("--people", type=int, default=PEOPLE, help="how many")
        parser.add_argument("--first", type=int, default=FIRST, help="number of the first held-out person")
        parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
        parser.add_argument("--state", type=Path, default=state, help="figures so far")
        chosen = parser.parse_args()
        for name, least in (("people", 1), ("first", 0), ("threads", 1)):
            if getattr(chosen, name) < least:
                parser.error(f"--{name} is {getattr(chosen, name)}; give {least} or more")
        rows = chosen.rows or []
        if unknown := set(rows) - set(self.ways):
            parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(self.ways)}")
        for place, name in enumerate(rows):
            needs = getattr(self.ways[name], "needs", ())
            if set(needs) - set(rows[:place]):
                parser.error(f"{name} needs {' and '.join(needs)} before it")
        return chosen


def summary(name: str, rows: Sequence[Row], failed: int) -> Row:
    """Mean and spread over people of the figures, medians of what it cost; and how many have none."""
    if not rows:
        return {"name": name, "people": 0, FAILED: failed, "skipped": "it failed with everybody"}
    row: Row = {"name": name, "people": len(rows), FAILED: failed}
    for figure in (*FIGURES, *SCENES):
        values = [r[figure] for r in rows]
        row[figure] = statistics.mean(values)
        row[f"{figure}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    for cost in COSTS:
        row[cost] = statistics.median_low(r[cost] for r in rows)
    return row


def add_differences(done: Done, other: str) -> None:
    """By how much each row's figures are above the other's; its identity and seconds as shares, where those are any."""
    beside = done.get(other, {})
    for row in done.values():
        if "identity" in row and "identity" in beside:
            row.update({f"{figure}_to_{other}": row[figure] - beside[figure] for figure in FIGURES})
            if beside["identity"] > 0.1:
                row[f"identity_of_{other}"] = row["identity"] / beside["identity"]
            if beside["seconds"]:
                row[f"seconds_of_{other}"] = row["seconds"] / beside["seconds"]


def draw_sheet(bench: Bench, images: dict[str, Tensor], number: int, path: Path) -> None:
    """One person by every row: name -> [scenes, 64, 64, 3]."""
    from PIL import Image

    def to_pil(row: Tensor) -> list[Any]:
        return [Image.fromarray((p.clamp(0, 1).numpy() * 255).round().astype("uint8")) for p in row]

    from hyperbooth.trainers.reporting.image_grid import image_grid

    cells = [to_pil(bench.references(number)), *map(to_pil, images.values())]
    page = image_grid(cells, above=bench.task_of.CAPTIONS, left=["references", *images], side=128)
    page.save(path, optimize=True)
