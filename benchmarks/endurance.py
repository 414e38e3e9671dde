"""Test the endurance of a real server: a training killed twenty times, and fifty trainings one after another."""

import argparse
import tempfile
from pathlib import Path

import psutil
from common import harness
from common.harness import Column, Row

from tools.comfy_harness import api_graphs, import_pack, kill_test, server, tiny_checkpoints

KILLS = 20
STEPS, EVERY = 400, 5
PROMPTS = 50
SETTLED = 5
"""Number of prompts after which the server's memory is at its steady state."""

KILL_COLUMNS = (
    Column("kills", "kills"),
    Column("broken files", "broken_files"),
    Column("most steps done again", "steps_done_again"),
    Column("same adapter", "same_adapter"),
)
PROMPT_COLUMNS = (
    Column("prompts", "prompts"),
    Column("GB after 5", "settled_bytes", harness.gigabytes),
    Column("GB after the last", "last_bytes", harness.gigabytes),
    Column("last / settled", "last_times_settled", harness.times),
)


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
    """Run ``count`` trainings in one server; measure its memory after the fifth and after the last."""
    graph = api_graphs.small_job(checkpoint.name, steps=3)
    held: list[int] = []
    with server.running_server(server.prepare_job(folder / "prompts", checkpoint)) as running:
        for index in range(count):
            outcome = running.run(api_graphs.changed(graph, "HyperBoothTrain", seed=index))
            assert outcome.status == "success", outcome.message
            held.append(psutil.Process(running.process.pid).memory_info().rss)
    settled = held[SETTLED - 1]
    return {
        "name": "trainings in one server", "prompts": count, "settled_bytes": settled, "last_bytes": held[-1],
        "last_times_settled": held[-1] / settled,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    chosen = parser.parse_args()
    import_pack.import_comfyui()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = tiny_checkpoints.write_sd15(Path(folder) / "small_sd15.safetensors")
        rows = [prompts(Path(folder), checkpoint, chosen.prompts), kills(Path(folder), checkpoint, chosen.kills)]
    print(harness.table(rows[:1], PROMPT_COLUMNS), harness.table(rows[1:], KILL_COLUMNS), sep="\n\n")
    whole = chosen.kills >= KILLS and chosen.prompts >= PROMPTS
    paths = [harness.RESULTS / "kill_test.json"] if whole else []
    harness.write_json("endurance", harness.machine(2), rows, *paths, *([chosen.json] if chosen.json else []))


if __name__ == "__main__":
    main()
