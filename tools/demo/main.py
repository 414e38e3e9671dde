"""Run the main task end to end: images in, an adapter out, applied in the same ComfyUI graph.

Runs a shipped workflow on a real headless ComfyUI. Without ``--checkpoint`` the model is the small world's: drawn
portraits. From one image of a held-out person a hypernetwork predicts an adapter, and forty steps refine it; from two
to four images a DreamBooth LoRA is trained. The result is measured. With an SD1.5 checkpoint a LoRA is trained on your
images.
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
from tools.demo.graph import DemoConfig, Graph, graph_of, kinds  # noqa: E402
from tools.small_world.scene import task  # noqa: E402

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_IMAGES = 10
"""Number of images that ComfyUI's own Create List takes."""
FILES = ("sheet.png", "subject_00001_.safetensors", "loss_chart.png", "training.jpg", "report.txt", "comfyui.log")
SCENES = ("{} in the snow", "{} on a beach at sunset", "{} in a forest", "a watercolour of {}", "a pencil sketch of {}")
"""Scenes for a checkpoint of the user."""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the server too
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
    """Run the demo in the ComfyUI whose base directory is ``base``; return the exit code."""
    judge = portraits.judge(arguments.pictures) if arguments.checkpoint is None and arguments.photos is None else None
    config = config_of(arguments, base)
    graph = graph_of(config)
    for name in FILES:  # of an earlier run
        (output / name).unlink(missing_ok=True)
    print("Starting ComfyUI ...", flush=True)
    with running_server(base) as server:
        what = "predicting from" if config.network else "training on"
        print(f"ComfyUI is ready; {what} {len(config.images)} image(s) ...", flush=True)
        outcome = server.run(graph, on_progress=Reporter(graph), seconds=24 * 3600)
    print(flush=True)
    if outcome.status != "success":
        print(f"The workflow ended with {outcome.status}: {outcome.message}", file=sys.stderr)
        return 1
    collect(base, outcome, graph, output)
    draw_grid(base, config, output, judge)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--person", type=whole(0, 999), default=40, help="which of the small world's (default: 40)")
    parser.add_argument(
        "--pictures", type=int, choices=range(1, 5), default=1,
        help="of that person: 1 (default): predicted by a hypernetwork and refined; 2 to 4: a LoRA is trained",
    )  # fmt: skip
    parser.add_argument("--photos", type=Path, help="folder of images of one subject, instead of a drawn person")
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
    """Return an argparse type for an integer from ``low`` to ``high``."""

    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return number


def writable(folder: Path) -> Path:
    """Create the folder if needed and return it; exit with a message if it is not writable."""
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


def config_of(arguments: argparse.Namespace, base: Path) -> DemoConfig:
    """Return the demo's configuration, and place its files in ComfyUI's folders."""
    settings = dict(portraits.SETTINGS) if arguments.checkpoint is None else {}
    if arguments.steps:
        for node in ("HyperBoothTrain", "HyperBoothFastFinetune"):
            settings[node] = settings.get(node, {}) | {"steps": arguments.steps}
    images = place_images(arguments, base / "input")
    folder = base / "models" / "checkpoints"
    if arguments.checkpoint is None:
        if arguments.photos:
            print("Without --checkpoint the model is the small world's, which knows drawn faces only.", flush=True)
        add_small_world(base)
        checkpoint, scenes, network = portraits.write_checkpoint(folder), portraits.scenes(), None
        if not arguments.photos and arguments.pictures == 1:
            network = portraits.write_network(base / "models" / "hyperbooth")
        return DemoConfig(images, checkpoint, task.PROMPT, task.CLASS_PROMPT, scenes, settings, False, network)
    if not arguments.checkpoint.is_file():
        raise SystemExit(f"--checkpoint: there is no file {arguments.checkpoint}")
    link(arguments.checkpoint, folder / arguments.checkpoint.name)
    noun = arguments.class_noun or "dog"
    return DemoConfig(images, arguments.checkpoint.name, f"a sks {noun}", f"a {noun}", list(SCENES), settings)


def place_images(arguments: argparse.Namespace, target: Path) -> list[str]:
    """Place the user's or the drawn person's images in ComfyUI's input folder; return their names."""
    folder = arguments.photos
    if folder is None:
        return portraits.draw_person(arguments.person, arguments.pictures, target)
    if not folder.is_dir():
        raise SystemExit(f"--photos: there is no folder {folder}")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not 1 <= len(found) <= MAX_IMAGES:
        raise SystemExit(f"--photos: {folder} holds {len(found)} of {', '.join(SUFFIXES)}; give 1 to {MAX_IMAGES}")
    for path in found:
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise SystemExit(f"--photos: {path.name} is not a readable image: {error}") from error
        shutil.copy(path, target / path.name)
    return [path.name for path in found]


class Reporter:
    """Print a line that follows the progress of the running node."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def __call__(self, node: str, value: int) -> None:
        title = self.graph.get(node, {}).get("_meta", {}).get("title", node)
        print(f"\r{title}: {value}          ", end="", flush=True)


def collect(base: Path, outcome: Outcome, graph: Graph, output: Path) -> None:
    """Copy the adapter, the loss chart and the last training preview to ``output``, and print the report."""
    for node, shown in outcome.outputs.items():
        if graph[node]["class_type"] == "LossGraphNode":
            (entry,) = shown["images"]
            shutil.copy(base / entry["type"] / entry["subfolder"] / entry["filename"], output / "loss_chart.png")
    if outcome.images:
        (output / "training.jpg").write_bytes(outcome.images[-1])
    report = next(s["text"][0] for n, s in outcome.outputs.items() if graph[n]["class_type"] == "PreviewAny")
    (output / "report.txt").write_text(report)
    print(report)


def draw_grid(base: Path, config: DemoConfig, output: Path, judge: portraits.Judge | None) -> None:
    """Draw the image grid; with a judge, also print the scores."""
    load_pack()
    from hyperbooth.trainers.reporting.image_grid import image_grid

    references = [ImageOps.exif_transpose(Image.open(base / "input" / name)) for name in config.images]
    cells, titles, captions = [], [], [scene.format(config.class_prompt) for scene in config.scenes]
    for kind, prompt in kinds(config).items():
        made = [sorted((base / "output").glob(f"{kind}_{number}_*.png")) for number in range(len(config.scenes))]
        images = [[Image.open(path) for path in paths] for paths in made]
        scores = f"\n{judge(references, images, captions)}" if judge else ""
        title = f"{kind}: {prompt} ...{scores}"
        print(title.replace("\n", ", "))
        cells += [list(row) for row in zip(*images, strict=True)]
        titles += [title, *[""] * (len(images[0]) - 1)]
    for number, row in enumerate(cells):
        row.insert(0, references[number] if number < len(references) else None)
    columns = ["references", *(scene.format("...") for scene in config.scenes)]
    page = image_grid(cells, above=columns, left=titles, side=128 if judge else 256)
    page.save(output / "sheet.png", optimize=True)


if __name__ == "__main__":
    sys.exit(main())
