"""Test the endurance of a real server: a training killed thirty times, and a hundred trainings queued at once."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Thread

from common import harness
from common.harness import Column, Row

from tools.comfy_harness import api_graphs, import_pack, kill_test, server, tiny_checkpoints
from tools.comfy_harness.soak import Soak

Measure = Callable[[Path, Path, int], Row]
"""(folder, checkpoint, number of prompts or kills) -> the row."""
KILLS = 30
STEPS, EVERY = 400, 5
PROMPTS, CLIENTS = 100, 20
SETTLED = 10
"""Number of prompts after which the server is at its steady state."""

KILL_COLUMNS = (
    Column("kills", "kills"),
    Column("broken files", "broken_files"),
    Column("most steps done again", "steps_done_again"),
    Column("same adapter", "same_adapter"),
)
HELD = ("bytes", "threads", "handles", "files")
"""What is compared; aim: within 5 %."""
PROMPT_COLUMNS = (
    Column("prompts", "prompts"),
    Column("GB after 10", "settled_bytes", harness.gigabytes),
    Column("threads", "settled_threads"),
    Column("handles", "settled_handles"),
    Column("files", "settled_files"),
    *(Column(f"{name}, last / tenth", f"{name}_times_settled", harness.times) for name in HELD),
)


SERVER_COLUMNS = (Column("saves", "saves"), Column("different files", "files"))


def kills(folder: Path, checkpoint: Path, count: int) -> Row:
    """Compare a training killed ``count`` times at random moments with the same one never killed."""
    from safetensors.torch import load_file

    prepare = kill_test.with_states(api_graphs.small_job(checkpoint.name, STEPS), EVERY)
    killed = kill_test.survive(server.prepare_job(folder / "killed", checkpoint), prepare, count, seed=1)
    whole = kill_test.survive(server.prepare_job(folder / "whole", checkpoint), prepare, 0, seed=1)
    first, second = load_file(killed.result), load_file(whole.result)
    same = first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)
    return {
        "name": f"{STEPS} steps, a state every {EVERY}", "kills": killed.kills, "broken_files": len(killed.broken),
        "steps_done_again": killed.lost, "same_adapter": same,
    }  # fmt: skip


def prompts(folder: Path, checkpoint: Path, count: int) -> Row:
    """Queue ``count`` trainings by :data:`CLIENTS` clients; what does the server hold after the tenth and the last?"""
    graph = api_graphs.small_job(checkpoint.name, steps=3)
    with server.running_server(server.prepare_job(folder / "prompts", checkpoint)) as running:
        soak = Soak(running, graph=lambda number: api_graphs.changed(graph, "HyperBoothTrain", seed=number))
        held = soak.run(count, CLIENTS)
    assert not soak.failures, soak.failures[0]
    settled, last = asdict(held[min(SETTLED, count) - 1]), asdict(held[-1])
    growth = {f"{name}_times_settled": last[name] / settled[name] for name in last}
    return {
        "name": f"trainings queued by {CLIENTS} clients", "prompts": count,
        **{f"settled_{name}": value for name, value in settled.items()}, **growth,
    }  # fmt: skip


def two_servers(folder: Path, checkpoint: Path, count: int) -> Row:
    """Train ``count`` adapters on each of two servers with one output folder, at the same time; none may be lost."""
    graph = api_graphs.small_job(checkpoint.name, steps=2)  # the stock Loss Graph divides by their number less one
    base = server.prepare_job(folder / "shared", checkpoint)
    with server.running_server(base) as first, server.running_server(base) as second:
        soaks = [
            Soak(running, lambda number, start=start: api_graphs.changed(graph, "HyperBoothTrain", seed=start + number))
            for start, running in ((0, first), (count, second))
        ]
        threads = [Thread(target=soak.run, args=(count, 1)) for soak in soaks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    failures = [failure for soak in soaks for failure in soak.failures]
    assert not failures, failures[0]
    saved = {path.read_bytes() for path in (base / "output" / "loras").glob("*.safetensors")}
    return {"name": "two servers, one output folder", "saves": 2 * count, "files": len(saved)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    chosen = parser.parse_args()
    import_pack.import_comfyui()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = tiny_checkpoints.write_sd15(Path(folder) / "small_sd15.safetensors")
        measured: tuple[tuple[Measure, int, Sequence[Column]], ...] = (
            (prompts, chosen.prompts, PROMPT_COLUMNS),
            (two_servers, chosen.prompts // 10, SERVER_COLUMNS),
            (kills, chosen.kills, KILL_COLUMNS),
        )
        rows = []
        for measure, count, columns in measured:
            rows.append(measure(Path(folder), checkpoint, count))
            print(harness.table(rows[-1:], columns), end="\n\n", flush=True)
    whole = chosen.kills >= KILLS and chosen.prompts >= PROMPTS
    paths = [harness.RESULTS / "endurance.json"] if whole else []
    harness.write_json("endurance", harness.machine(2), rows, *paths, *([chosen.json] if chosen.json else []))


if __name__ == "__main__":
    main()
