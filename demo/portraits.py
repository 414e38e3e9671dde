"""The demo to come, once the small world's networks are trained; until then `main.py` is the demo.

The main job, end to end: photographs in, a DreamBooth LoRA out, applied in the same ComfyUI graph.

Runs the shipped workflow on a real headless ComfyUI. Without ``--checkpoint`` the model is the small world's: drawn
portraits, pretrained in minutes, in which a person nobody trained on is personalised from four pictures, and what
came out is measured. With an SD1.5 checkpoint the pictures are photographs.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import world  # noqa: E402
from graph import BASE, OURS, Graph, Job, graph_of  # noqa: E402

from devkit.pack import load_pack  # noqa: E402
from devkit.server import Outcome, add_world, link, prepare_base, running_server  # noqa: E402

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
SCENES = ("{} in the snow", "{} on a beach at sunset", "{} in a forest", "a watercolour of {}", "a pencil sketch of {}")
"""For a checkpoint of yours."""


def main() -> int:
    arguments = parse()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hyperbooth-demo-") as folder:
        base = prepare_base(Path(folder))
        job = job_of(arguments, base)
        graph = graph_of(job)
        print("Starting ComfyUI ...", flush=True)
        with running_server(base) as server:
            print(f"ComfyUI answers; training on {len(job.photographs)} pictures ...", flush=True)
            outcome = server.run(graph, on_progress=Reporter(graph), seconds=24 * 3600)
        print(flush=True)
        shutil.copy(base / "server.log", output / "comfyui.log")
        if outcome.status != "success":
            print(f"The workflow ended with {outcome.status}: {outcome.message}", file=sys.stderr)
            return 1
        collect(base, outcome, graph, output)
        show(base, job, output, measured=arguments.checkpoint is None)
        print("\nThe results are in", output, *sorted(path.name for path in output.iterdir()), sep="\n   ")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--person", type=int, default=0, help="which of the small world's people (default: 0)")
    parser.add_argument("--pictures", type=int, choices=range(1, 5), default=4, help="of that person (default: 4)")
    parser.add_argument("--photos", type=Path, help="folder of photographs of one subject, instead of a drawn person")
    parser.add_argument("--checkpoint", type=Path, help="an SD1.5 checkpoint, instead of the small world's")
    parser.add_argument("--class-noun", default="dog", help="what the subject is, for --checkpoint: dog, backpack ...")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output", help="where the results go")
    chosen = parser.parse_args()
    if chosen.checkpoint and not chosen.photos:
        parser.error("--checkpoint needs --photos: pictures of your subject")
    return chosen


def job_of(arguments: argparse.Namespace, base: Path) -> Job:
    """What is to be done, with everything it needs in ComfyUI's folders."""
    settings = dict(world.SETTINGS) if arguments.checkpoint is None else {}
    if arguments.steps:
        settings["HyperBoothTrain"] = settings.get("HyperBoothTrain", {}) | {"steps": arguments.steps}
    photographs = place_photographs(arguments, base / "input")
    folder = base / "models" / "checkpoints"
    if arguments.checkpoint is None:
        add_world(base)
        task = world.module("task")
        checkpoint, scenes = world.write_checkpoint(folder), list(task.CAPTIONS)
        return Job(photographs, checkpoint, task.PROMPT, task.CLASS_PROMPT, scenes, settings)
    if not arguments.checkpoint.is_file():
        raise SystemExit(f"--checkpoint: there is no file {arguments.checkpoint}")
    link(arguments.checkpoint, folder / arguments.checkpoint.name)
    noun = arguments.class_noun
    scenes = [scene.format(f"a {noun}") for scene in SCENES]
    return Job(photographs, arguments.checkpoint.name, f"a sks {noun}", f"a {noun}", scenes, settings)


def place_photographs(arguments: argparse.Namespace, target: Path) -> list[str]:
    """The photographs (or the drawn person's pictures) in ComfyUI's input folder; their names there."""
    folder = arguments.photos
    if folder is None:
        return world.draw_person(arguments.person, arguments.pictures, target)
    if not folder.is_dir():
        raise SystemExit(f"--photos: there is no folder {folder}")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise SystemExit(f"--photos: {folder} holds no {', '.join(PICTURES)} file")
    for path in found:
        shutil.copy(path, target / path.name)
    return [path.name for path in found]


class Reporter:
    """Prints a line that moves with the progress of the running node."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def __call__(self, node: str, value: int) -> None:
        title = self.graph.get(node, {}).get("_meta", {}).get("title", node)
        print(f"\r{title}: {value}          ", end="", flush=True)


def collect(base: Path, outcome: Outcome, graph: Graph, output: Path) -> None:
    """Copy the adapter, the loss chart and the training's pictures to ``output``, and print the report."""
    for node, shown in outcome.outputs.items():
        if graph[node]["class_type"] == "LossGraphNode":
            (entry,) = shown["images"]
            shutil.copy(base / entry["type"] / entry["subfolder"] / entry["filename"], output / "loss_chart.png")
    for adapter in (base / "output" / "loras").glob("*.safetensors"):
        shutil.copy(adapter, output / adapter.name)
    if outcome.pictures:
        (output / "training.jpg").write_bytes(outcome.pictures[-1])
    report = next(s["text"][0] for n, s in outcome.outputs.items() if graph[n]["class_type"] == "PreviewAny")
    (output / "report.txt").write_text(report)
    print(report)


def show(base: Path, job: Job, output: Path, measured: bool) -> None:
    """Draw the sheet; in the small world, also measure."""
    load_pack()
    from hyperbooth.trainers.sheet import grid

    photographs = [Image.open(base / "input" / name) for name in job.photographs]
    cells, titles = [], []
    for kind, prompt in ((BASE, job.class_prompt), (OURS, job.prompt)):
        made = [sorted((base / "output").glob(f"{kind}_{number}_*.png")) for number in range(len(job.scenes))]
        pictures = [[Image.open(path) for path in paths] for paths in made]
        scores = f"\n{world.judged(photographs, pictures, job.scenes)}" if measured else ""
        title = f"{kind}: {prompt} ...{scores}"
        print(title.replace("\n", ", "))
        cells += [list(row) for row in zip(*pictures, strict=True)]
        titles += [title, *[""] * (len(pictures[0]) - 1)]
    for number, row in enumerate(cells):
        row.insert(0, photographs[number] if number < len(photographs) else None)
    scenes = [scene.replace(job.class_prompt, "...") for scene in job.scenes]
    page = grid(cells, ["photographs", *scenes], titles, side=128 if measured else 256)
    page.save(output / "sheet.png", optimize=True)


if __name__ == "__main__":
    sys.exit(main())
