"""The main job, end to end: photographs in, an adapter out, applied in the same ComfyUI graph.

Runs a shipped workflow on a real headless ComfyUI. Without ``--checkpoint`` the model is the small world's: drawn
portraits. From one image of a person nobody pretrained on, a hypernetwork predicts an adapter, and forty steps refine
it; from two to four, a DreamBooth LoRA is trained. What comes out is measured. With an SD1.5 checkpoint a LoRA is
trained on photographs.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tools.comfy_harness.import_pack import load_pack  # noqa: E402
from tools.comfy_harness.server import Outcome, add_small_world, prepare_base, running_server  # noqa: E402
from tools.comfy_harness.symlinks import link  # noqa: E402
from tools.demo import portraits  # noqa: E402
from tools.demo.graph import Graph, Job, graph_of, kinds  # noqa: E402
from tools.small_world.scene import task  # noqa: E402

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
MOST = 10
"""Images that ComfyUI's own Create List takes."""
FILES = ("sheet.png", "subject_00001_.safetensors", "loss_chart.png", "training.jpg", "report.txt", "comfyui.log")
SCENES = ("{} in the snow", "{} on a beach at sunset", "{} in a forest", "a watercolour of {}", "a pencil sketch of {}")
"""For a checkpoint of yours."""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server goes too
    arguments = parse()
    output = writable(arguments.output.resolve())
    with tempfile.TemporaryDirectory(prefix="hyperbooth-demo-") as folder:
        base = prepare_base(Path(folder))
        try:
            ended = run(arguments, base, output)
        except FileNotFoundError as error:  # a network of the small world
            raise SystemExit(str(error)) from error
        except KeyboardInterrupt:
            print("\nStopped.", file=sys.stderr)
            return 130
        finally:
            keep(base, output)
    if ended == 0:
        print("\nThe results are in", output, *(name for name in FILES if (output / name).exists()), sep="\n   ")
    return ended


def run(arguments: argparse.Namespace, base: Path, output: Path) -> int:
    """Everything, in the ComfyUI whose folder is `base`."""
    judge = portraits.judge(arguments.pictures) if arguments.checkpoint is None and arguments.photos is None else None
    job = job_of(arguments, base)
    graph = graph_of(job)
    for name in FILES:  # of a former run
        (output / name).unlink(missing_ok=True)
    print("Starting ComfyUI ...", flush=True)
    with running_server(base) as server:
        what = "predicting from" if job.network else "training on"
        print(f"ComfyUI answers; {what} {len(job.photographs)} image(s) ...", flush=True)
        outcome = server.run(graph, on_progress=Reporter(graph), seconds=24 * 3600)
    print(flush=True)
    if outcome.status != "success":
        print(f"The workflow ended with {outcome.status}: {outcome.message}", file=sys.stderr)
        return 1
    collect(base, outcome, graph, output)
    show(base, job, output, judge)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--person", type=whole(0, 999), default=40, help="which of the small world's (default: 40)")
    parser.add_argument(
        "--pictures", type=int, choices=range(1, 5), default=1,
        help="of that person: 1 (default): predicted by a hypernetwork and refined; 2 to 4: a LoRA is trained",
    )  # fmt: skip
    parser.add_argument("--photos", type=Path, help="folder of photographs of one subject, instead of a drawn person")
    parser.add_argument("--checkpoint", type=Path, help="an SD1.5 checkpoint, instead of the small world's")
    parser.add_argument("--class-noun", help="what the subject is, for --checkpoint: dog (default), backpack ...")
    parser.add_argument("--steps", type=whole(2, 100000), help="training steps")
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output", help="where the results go")
    chosen = parser.parse_args()
    if chosen.checkpoint and not chosen.photos:
        parser.error("--checkpoint needs --photos: images of your subject")
    if chosen.class_noun and not chosen.checkpoint:
        parser.error("--class-noun is for a --checkpoint of yours; the small world's model draws faces only")
    return chosen


def whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number in this range, for argparse."""

    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return number


def writable(folder: Path) -> Path:
    """The folder, made if need be; an error before anything is computed if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise SystemExit(f"--output: nothing can be written to {folder}: {error.strerror}") from error


def keep(base: Path, output: Path) -> None:
    """Save the server's log and the adapters from the temporary folder, however the run ended."""
    if (base / "server.log").exists():
        shutil.copy(base / "server.log", output / "comfyui.log")
    for adapter in (base / "output" / "loras").glob("*.safetensors"):
        shutil.copy(adapter, output / adapter.name)


def job_of(arguments: argparse.Namespace, base: Path) -> Job:
    """What is to be done, with everything it needs in ComfyUI's folders."""
    settings = dict(portraits.SETTINGS) if arguments.checkpoint is None else {}
    if arguments.steps:
        for node in ("HyperBoothTrain", "HyperBoothFastFinetune"):
            settings[node] = settings.get(node, {}) | {"steps": arguments.steps}
    photographs = place_photographs(arguments, base / "input")
    folder = base / "models" / "checkpoints"
    if arguments.checkpoint is None:
        if arguments.photos:
            print("Without --checkpoint the model is the small world's, which knows drawn faces only.", flush=True)
        add_small_world(base)
        checkpoint, scenes, network = portraits.write_checkpoint(folder), portraits.scenes(), None
        if not arguments.photos and arguments.pictures == 1:
            network = portraits.write_network(base / "models" / "hyperbooth")
        return Job(photographs, checkpoint, task.PROMPT, task.CLASS_PROMPT, scenes, settings, False, network)
    if not arguments.checkpoint.is_file():
        raise SystemExit(f"--checkpoint: there is no file {arguments.checkpoint}")
    link(arguments.checkpoint, folder / arguments.checkpoint.name)
    noun = arguments.class_noun or "dog"
    return Job(photographs, arguments.checkpoint.name, f"a sks {noun}", f"a {noun}", list(SCENES), settings)


def place_photographs(arguments: argparse.Namespace, target: Path) -> list[str]:
    """The photographs (or the drawn person's images) in ComfyUI's input folder; their names there."""
    folder = arguments.photos
    if folder is None:
        return portraits.draw_person(arguments.person, arguments.pictures, target)
    if not folder.is_dir():
        raise SystemExit(f"--photos: there is no folder {folder}")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES and path.is_file())
    if not 1 <= len(found) <= MOST:
        raise SystemExit(f"--photos: {folder} holds {len(found)} of {', '.join(IMAGES)}; give 1 to {MOST}")
    for path in found:
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise SystemExit(f"--photos: {path.name} is no image that can be read: {error}") from error
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
    """Copy the adapter, the loss chart and the training's images to ``output``, and print the report."""
    for node, shown in outcome.outputs.items():
        if graph[node]["class_type"] == "LossGraphNode":
            (entry,) = shown["images"]
            shutil.copy(base / entry["type"] / entry["subfolder"] / entry["filename"], output / "loss_chart.png")
    if outcome.images:
        (output / "training.jpg").write_bytes(outcome.images[-1])
    report = next(s["text"][0] for n, s in outcome.outputs.items() if graph[n]["class_type"] == "PreviewAny")
    (output / "report.txt").write_text(report)
    print(report)


def show(base: Path, job: Job, output: Path, judge: portraits.Judge | None) -> None:
    """Draw the sheet; in the small world, also measure."""
    load_pack()
    from hyperbooth.trainers.reporting.image_grid import image_grid

    photographs = [ImageOps.exif_transpose(Image.open(base / "input" / name)) for name in job.photographs]
    cells, titles, captions = [], [], [scene.format(job.class_prompt) for scene in job.scenes]
    for kind, prompt in kinds(job).items():
        made = [sorted((base / "output").glob(f"{kind}_{number}_*.png")) for number in range(len(job.scenes))]
        images = [[Image.open(path) for path in paths] for paths in made]
        scores = f"\n{judge(photographs, images, captions)}" if judge else ""
        title = f"{kind}: {prompt} ...{scores}"
        print(title.replace("\n", ", "))
        cells += [list(row) for row in zip(*images, strict=True)]
        titles += [title, *[""] * (len(images[0]) - 1)]
    for number, row in enumerate(cells):
        row.insert(0, photographs[number] if number < len(photographs) else None)
    columns = ["photographs", *(scene.format("...") for scene in job.scenes)]
    page = image_grid(cells, above=columns, left=titles, side=128 if judge else 256)
    page.save(output / "sheet.png", optimize=True)


if __name__ == "__main__":
    sys.exit(main())
