"""Share between the benchmarks on SD1.5's U-Net the setup of a row, the command line and ratios of rows."""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import harness
from common.harness import Aim, Column, Row
from torch import Tensor

from tools.comfy_harness import import_pack, tiny_checkpoints

PROMPT = (1, 77, 768)


@dataclass(frozen=True)
class RowSetup:
    """Describe what a row runs.

    Args:
        weights: weights file of the U-Net.
        small: whether the U-Net is ``SD15_SMALL``; otherwise it is ``SD15_FULL``.
        steps: steps to measure; one warm-up step comes before them.
        latent: side of the latents.
        dtype: precision of weights and computation.
    """

    weights: Path
    small: bool
    steps: int
    latent: int = 32
    dtype: str = "float32"

    @property
    def updates(self) -> int:
        return self.steps + 1

    @torch.inference_mode()
    def model(self) -> Any:
        """Return MODEL by the stock loader of diffusion models, under inference mode as in the server."""
        import_pack.import_comfyui()
        import comfy.sd

        return comfy.sd.load_diffusion_model(str(self.weights), model_options={"dtype": getattr(torch, self.dtype)})

    def data(self) -> tuple[Tensor, Tensor]:
        """Return a latent and a prompt's conditioning; random, since time and memory do not depend on their values."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, 4, self.latent, self.latent, generator=generator), torch.randn(
            PROMPT, generator=generator
        )


def write_weights(path: Path, small: bool) -> None:
    """Write the weights of the U-Net that every row loads."""
    from safetensors.torch import save_file

    import_pack.import_comfyui()
    config = tiny_checkpoints.SD15_SMALL if small else tiny_checkpoints.SD15_FULL
    save_file(tiny_checkpoints.sd15_unet(config), path)


@dataclass(frozen=True)
class UNetBenchmark:
    """Run a benchmark with one process per row, all on the same weights.

    Args:
        name: name of the report.
        script: the benchmark's file, started again for every row.
        about: text of ``--help``.
        rows: names of the rows.
        measure: runs one row in its process.
        compare: adds ratios between rows to rows (name -> figures).
        columns: columns of the table.
        aims: aims that are printed under the table.
        needed: row -> memory that it needs, as a multiple of the weights' size; 2 for all others.
        steps: default of ``--steps``.
        repeats: default of ``--repeats``.
        dtypes: precisions; every combination with ``latents`` is measured.
        latents: sides of the latents.
        chart: draws all rows into a file next to the report.
    """

    name: str
    script: str
    about: str
    rows: Sequence[str]
    measure: Callable[[str, RowSetup], Row]
    compare: Callable[[Mapping[str, Row]], None]
    columns: Sequence[Column]
    aims: Sequence[Aim]
    needed: Mapping[str, float] = field(default_factory=dict)
    steps: int = 6
    repeats: int = 2
    dtypes: Sequence[str] = ("float32",)
    latents: Sequence[int] = (32,)
    chart: Callable[[Path, Sequence[Row]], None] | None = None

    def main(self) -> None:
        chosen = self._arguments()
        torch.set_num_threads(chosen.threads)
        if chosen.write_weights:
            write_weights(chosen.write_weights, chosen.small)
            print("{}")
        elif chosen.row:
            setup = RowSetup(chosen.weights, chosen.small, chosen.steps, chosen.latent, chosen.dtype)
            print(json.dumps(self.measure(chosen.row, setup)))
        else:
            with tempfile.TemporaryDirectory() as folder:
                self._report(chosen, Path(folder) / "unet.safetensors")

    def _report(self, chosen: argparse.Namespace, weights: Path) -> None:
        """Write the weights, measure the rows, print and save the result."""
        size = ["--small"] if chosen.small else []
        harness.in_own_process(self.script, ["--write-weights", str(weights), *size])
        passed = ["--weights", str(weights), "--steps", str(chosen.steps), "--threads", str(chosen.threads), *size]
        cases = list(
            product([chosen.dtype] if chosen.dtype else self.dtypes, [chosen.latent] if chosen.latent else self.latents)
        )
        kept: list[Row] = []
        for dtype, latent in cases:
            rows = self._case(chosen, weights, [*passed, "--dtype", dtype, "--latent", str(latent)])
            case = f"{dtype}, latents {latent} x {latent}"
            print(
                *([f"\n{case}"] if len(cases) > 1 else []), harness.table(list(rows.values()), self.columns), sep="\n"
            )
            if not chosen.small:
                print(*(aim.verdict(rows) for aim in self.aims), sep="\n")
            kept += [row | ({"name": f"{row['name']}, {case}"} if len(cases) > 1 else {}) for row in rows.values()]
        whole = not (
            chosen.small or chosen.rows or chosen.dtype or chosen.latent
        )  # a partial run replaces no saved result
        paths = ([harness.RESULTS / f"{self.name}.json"] if whole else []) + ([chosen.json] if chosen.json else [])
        harness.write_json(self.name, harness.machine(chosen.threads), kept, *paths)
        for path in paths if self.chart else ():
            self.chart(path.with_suffix(".png"), kept)

    def _case(self, chosen: argparse.Namespace, weights: Path, passed: Sequence[str]) -> dict[str, Row]:
        """Return the best run of each row, with the ratios between rows."""

        def run(name: str) -> Row:
            needed = self.needed.get(name, 2) * weights.stat().st_size
            return harness.in_own_process_if_it_fits(self.script, ["--row", name, *passed], needed)

        rows = harness.in_turn(chosen.rows or self.rows, run, chosen.repeats, "seconds_per_step")
        self.compare(rows)
        return rows

    def _arguments(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter)
        known = ", ".join(self.rows)
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
        parser.add_argument("--rows", type=lambda text: text.split(","), metavar="A,B", help=f"of {known}")
        parser.add_argument("--small", action="store_true", help="a U-Net of 26 M parameters, for a quick run")
        parser.add_argument("--steps", type=int, default=self.steps, help="measured steps of a run, after a warm-up")
        parser.add_argument("--repeats", type=int, default=self.repeats, help="runs of each row; the fastest counts")
        parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch, the same for every row")
        parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="one precision only")
        parser.add_argument("--latent", type=int, choices=(8, 32, 64), help="one side of the latents only")
        parser.add_argument("--row", choices=self.rows, help=argparse.SUPPRESS)
        parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
        parser.add_argument("--write-weights", type=Path, help=argparse.SUPPRESS)
        chosen = parser.parse_args()
        if unknown := set(chosen.rows or ()) - set(self.rows):
            parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {known}")
        return chosen


def add_ratios(rows: Mapping[str, Row], figure: str, others: Mapping[str, str]) -> None:
    """Add the ``figure`` of each row as a multiple of another row's (its name -> the ratio's name)."""
    for row in rows.values():
        for other, ratio in others.items():
            if figure in row and figure in rows.get(other, {}):
                row[ratio] = row[figure] / rows[other][figure]
