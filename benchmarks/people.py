"""Estimate a bank of many people: disk by the format of its files, time by what ``bench bank`` has measured.

    disk  = people * pictures * (3 side^2 + 4 C (side / cell)^2 + 2 tokens width) + 4 N people          bytes
    hours = people / (people per hour of one machine * machines)

Pixels are bytes, latents and parameters float32, the encoder's tokens half precision. Headers (some 150 bytes for each
person) come on top. Nothing is trained here: ``python dev.py bench people --people 15000 --machines 8``.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MEASURED = Path(__file__).with_name("results") / "bank.json"
PEOPLE = (15_000, 10_000_000)
MACHINES = (1, 8, 64)


@dataclass(frozen=True)
class Person:
    """Hold the sizes of one person in a bank; the defaults are SD1.5 at 512 x 512 and CLIP ViT-H.

    Args:
        numbers: N, parameters of the adapter.
        pictures: images of each person.
        side: side of an image in pixels.
        channels: channels of the latents.
        cell: pixels along one latent position.
        tokens: tokens of the encoder's features.
        width: width of the encoder's features.
    """

    numbers: int = 30_000
    pictures: int = 1
    side: int = 512
    channels: int = 4
    cell: int = 8
    tokens: int = 257
    width: int = 1280

    @property
    def in_shards(self) -> int:
        """Return the bytes in the bank's shards."""
        latents = 4 * self.channels * (self.side // self.cell) ** 2
        return 4 * self.numbers + self.pictures * (3 * self.side**2 + latents)

    @property
    def in_features(self) -> int:
        """Return the bytes in the feature files."""
        return 2 * self.pictures * self.tokens * self.width


def people_per_hour(path: Path = MEASURED) -> tuple[float, str] | None:
    """Return the fastest row that ``bench bank`` has measured, and its machine; None before it ran."""
    if not path.is_file():
        return None
    measured = json.loads(path.read_text("utf-8"))
    rows = [row for row in measured["rows"] if row["name"].startswith("bank_") and "people_per_hour" in row]
    best = max(rows, key=lambda row: row["people_per_hour"], default=None)
    machine = measured["machine"].get("accelerator") or measured["machine"]["cpu"]
    return None if best is None else (best["people_per_hour"], f"{best['name']} on {machine}")


def table(person: Person, people: Sequence[int], machines: Sequence[int], pace: float | None) -> str:
    """Return a Markdown table: a row for each number of people, a column of hours for each number of machines."""
    hours = [f"hours on {count}" for count in machines] if pace else []
    head = ["people", "shards", "features", *hours]
    rows = [
        [f"{count:,}", _size(count * person.in_shards), _size(count * person.in_features),
         *([f"{count / (pace * several):,.1f}" for several in machines] if pace else [])]
        for count in people
    ]  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _size(count: int) -> str:
    return f"{count / 1e12:,.2f} TB" if count >= 1e12 else f"{count / 1e9:,.2f} GB"


def main() -> None:
    """Print sizes, pace and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=PEOPLE)
    parser.add_argument("--machines", type=int, nargs="+", default=MACHINES)
    parser.add_argument("--per-hour", type=float, help="people per hour of one machine, from the report of a bank")
    for name, size in vars(Person()).items():
        parser.add_argument(f"--{name}", type=int, default=size)
    given = vars(parser.parse_args())
    people, machines, pace = given.pop("people"), given.pop("machines"), given.pop("per_hour")
    person, measured = Person(**given), people_per_hour()
    print(f"one person: {person.in_shards:,} bytes in shards, {person.in_features:,} in features")
    if pace is None and measured is None:
        print("measured figures: run `python dev.py bench bank`, or give --per-hour")
    elif pace is None:
        pace, what = measured
        print(f"one machine: {pace:,.1f} people per hour ({what})")
    print(table(person, people, machines, pace))


if __name__ == "__main__":
    main()
