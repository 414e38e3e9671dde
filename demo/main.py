"""The main job, end to end: photographs in, a DreamBooth LoRA out, applied in the same ComfyUI graph.

Runs the shipped workflow on a real headless ComfyUI. Without ``--checkpoint`` the model is a small one made on
the spot with random weights and latents that are thumbnails: it knows nothing of the world, so what shows in its
coarse pictures has been learnt from the photographs alone. With an SD1.5 checkpoint the pictures are pictures.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from devkit.checkpoints import write_sd15  # noqa: E402
from devkit.pack import import_comfyui  # noqa: E402
from devkit.server import Outcome, prepare_base, running_server  # noqa: E402

WORKFLOW = ROOT / "workflows" / "api" / "hyperbooth_dreambooth_lora.json"
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def main() -> int:
    arguments = parse()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hyperbooth-demo-") as folder:
        base = prepare_base(Path(folder))
        names = place_photographs(arguments.photos, base / "input")
        graph = adapted(json.loads(WORKFLOW.read_text()), names, place_checkpoint(arguments, base), arguments)
        print("Starting ComfyUI ...", flush=True)
        with running_server(base) as server:
            print(f"ComfyUI answers; training on {len(names)} photographs ...", flush=True)
            outcome = server.run(graph, on_progress=Reporter(graph), seconds=24 * 3600)
        print(flush=True)
        shutil.copy(base / "server.log", output / "comfyui.log")
        if outcome.status != "success":
            print(f"The workflow ended with {outcome.status}: {outcome.message}", file=sys.stderr)
            return 1
        collect(base, outcome, graph, output)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photographs of one subject (default: drawn on the spot)")
    parser.add_argument("--class-noun", default="ball", help="what the subject is: dog, backpack, teapot ...")
    parser.add_argument("--checkpoint", type=Path, help="an SD1.5 checkpoint (.safetensors)")
    parser.add_argument("--steps", type=int, help="training steps (default: 300 on the small model, 500 on yours)")
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output", help="where the results go")
    return parser.parse_args()


def place_photographs(folder: Path | None, target: Path) -> list[str]:
    """The photographs (or drawn ones) in ComfyUI's input folder; their names there."""
    if folder is None:
        return draw_subject(target)
    if not folder.is_dir():
        raise SystemExit(f"--photos: there is no folder {folder}")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise SystemExit(f"--photos: {folder} holds no {', '.join(PICTURES)} file")
    for path in found:
        shutil.copy(path, target / path.name)
    return [path.name for path in found]


def draw_subject(target: Path) -> list[str]:
    """Four drawings of one striped ball on different grounds."""
    from PIL import Image, ImageDraw

    names = []
    for index, (ground, x) in enumerate([("#7fb069", 150), ("#e6aa68", 250), ("#6ba4d8", 330), ("#ece4d0", 220)]):
        picture = Image.new("RGB", (512, 512), ground)
        draw = ImageDraw.Draw(picture)
        draw.ellipse((x - 120, 130, x + 120, 370), fill="#c8102e")
        draw.chord((x - 120, 130, x + 120, 370), 200, 340, fill="#ffffff")
        draw.rectangle((x - 116, 235, x + 116, 265), fill="#1d3557")
        names.append(f"subject_{index + 1}.png")
        picture.save(target / names[-1])
    return names


def place_checkpoint(arguments: argparse.Namespace, base: Path) -> str:
    """The checkpoint in ComfyUI's folder; its name there."""
    folder = base / "models" / "checkpoints"
    if arguments.checkpoint is None:
        print("Making a small SD1.5 checkpoint with random weights (for real pictures: --checkpoint) ...", flush=True)
        import_comfyui()
        return write_sd15(folder / "small_sd15.safetensors").name
    if not arguments.checkpoint.is_file():
        raise SystemExit(f"--checkpoint: there is no file {arguments.checkpoint}")
    (folder / arguments.checkpoint.name).symlink_to(arguments.checkpoint.resolve())
    return arguments.checkpoint.name


def adapted(graph: dict[str, Any], photographs: list[str], checkpoint: str, arguments: argparse.Namespace) -> Any:
    """The shipped workflow with these photographs, this checkpoint and this subject; small for the small model."""
    noun, small = arguments.class_noun, arguments.checkpoint is None
    loaders = [name for name, node in graph.items() if node["class_type"] == "LoadImage"]
    gather = next(node for node in graph.values() if node["class_type"] == "CreateList")
    for name in loaders:
        del graph[name]
    gather["inputs"] = {}
    for index, photograph in enumerate(photographs):
        graph[f"photograph_{index}"] = {"class_type": "LoadImage", "inputs": {"image": photograph}}
        gather["inputs"][f"inputs.input{index}"] = [f"photograph_{index}", 0]
    for node in graph.values():
        inputs, kind = node["inputs"], node["class_type"]
        if kind == "CheckpointLoaderSimple":
            inputs["ckpt_name"] = checkpoint
        for key in ("prompt", "class_prompt", "text", "filename_prefix"):
            if isinstance(inputs.get(key), str):
                inputs[key] = inputs[key].replace("dog", noun)
            if small and key == "text" and inputs.get(key):
                inputs[key] = f"a photo of sks {noun}"
        if small:
            inputs.update(SMALL.get(kind, {}))
        if kind == "HyperBoothTrain" and arguments.steps:
            inputs["steps"] = arguments.steps
    return without_prior(graph) if small else graph


def without_prior(graph: dict[str, Any]) -> dict[str, Any]:
    """The workflow without class images: those of a model with random weights are noise, not worth preserving."""
    kept = {name: node for name, node in graph.items() if node["class_type"] != "HyperBoothClassImages"}
    for node in kept.values():
        node["inputs"].pop("class_images", None)
    train = next(node for node in kept.values() if node["class_type"] == "HyperBoothTrain")
    train["inputs"]["options"] = ["options", 0]
    kept["options"] = {"class_type": "HyperBoothTrainingOptions", "inputs": dict(SMALL_OPTIONS)}
    return kept


SMALL: dict[str, dict[str, Any]] = {
    "HyperBoothSubject": {"resolution": 128},
    "HyperBoothMethodLoRA": {
        "rank": 16, "alpha": 16.0, "targets": "all linear and convolution", "learning_rate": 4e-3,
    },
    "HyperBoothTrain": {"steps": 300, "batch_size": 2},
    "EmptyLatentImage": {"width": 128, "height": 128, "batch_size": 4},
    "KSampler": {"steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"},
}  # fmt: skip
"""For two cores, and for a model that has everything to learn: more layers, a higher rate, the prompt it trains on."""


SMALL_OPTIONS: dict[str, Any] = {
    "optimizer": "adamw", "lr_scheduler": "cosine", "warmup_steps": 0, "loss_weighting": "l_simple",
    "min_snr_gamma": 5.0, "noise_sampling": "uniform", "prior_mode": "none", "prior_weight": 1.0,
    "gradient_accumulation": 1, "max_grad_norm": 1.0, "gradient_checkpointing": False, "precision": "auto",
    "preview_every": 100,
}  # fmt: skip


class Reporter:
    """Prints a line that moves with the progress of the running node."""

    def __init__(self, graph: dict[str, Any]):
        self.graph = graph

    def __call__(self, node: str, value: int) -> None:
        title = self.graph.get(node, {}).get("_meta", {}).get("title", node)
        print(f"\r{title}: {value}          ", end="", flush=True)


def collect(base: Path, outcome: Outcome, graph: dict[str, Any], output: Path) -> None:
    """Copy what was made to ``output`` and print where it is."""
    made = []
    for node, shown in outcome.outputs.items():
        for entry in shown.get("images", []):
            source = base / entry["type"] / entry["subfolder"] / entry["filename"]
            name = "loss_chart.png" if graph[node]["class_type"] == "LossGraphNode" else entry["filename"]
            made.append(shutil.copy(source, output / name))
    for adapter in (base / "output" / "loras").glob("*.safetensors"):
        made.append(shutil.copy(adapter, output / adapter.name))
    if outcome.pictures:
        training = output / "training.jpg"
        training.write_bytes(outcome.pictures[-1])
        made.append(training)
    report = output / "report.txt"
    report.write_text(next(s["text"][0] for n, s in outcome.outputs.items() if graph[n]["class_type"] == "PreviewAny"))
    print(report.read_text(), "\n\nThe results are in", output)
    for path in [*made, report]:
        print("  ", Path(path).name)


if __name__ == "__main__":
    sys.exit(main())
