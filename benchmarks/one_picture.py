"""Measure the time from one image to a finished adapter at SD1.5's size: encoding, predicting, forty steps.

U-Net, text encoder, autoencoder, CLIP ViT-H and hypernetwork have the real sizes and random weights: results are
meaningless, costs are the same. Everything runs through the pack's nodes. See README.md.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import harness
from common.harness import Aim, Column, Row

from tools.comfy_harness import call_node, import_pack, tiny_checkpoints, tiny_encoders
from tools.comfy_harness.tiny_checkpoints import diffusion_models

STEPS, PROMPT = 40, "a photo of sks face"
STAGES = ("encode the image", "predict", "fast fine-tune")
COLUMNS = (
    Column("seconds, first", "seconds_first", lambda value: f"{value:.3f}"),
    Column("seconds, again", "seconds", lambda value: f"{value:.3f}"),
    Column("peak GB", "peak_bytes", harness.gigabytes),
)
AIMS = (Aim("one image to adapter", "seconds", 2.0),)
"""Applies to a GPU; the paper reports 20 s."""


def checkpoint(path: Path, small: bool, dtype: torch.dtype) -> Path:
    """Write a checkpoint in SD1.5's layout, with all three parts of the real size unless ``small``."""
    if small:
        return tiny_checkpoints.write_sd15(path, dtype=dtype)
    return tiny_checkpoints.write_sd15(path, tiny_checkpoints.SD15_FULL, dtype, tiny_checkpoints.sd15_vae)


def encoder(small: bool) -> Any:
    """Return CLIP_VISION, a ViT-H or a small one."""
    import comfy.clip_vision

    config = import_pack.comfyui_path() / "comfy" / "clip_vision_config_h.json"
    vision = comfy.clip_vision.ClipVisionModel(tiny_encoders.SMALL_CLIP_VISION if small else str(config))
    diffusion_models.fill(vision.model, 5)
    return vision


def predictor(model: Any, vision: Any) -> Any:
    """Return an untrained hypernetwork for the paper's LiDB on attention layers."""
    from hyperbooth.models.adapters import LiDBConfig
    from hyperbooth.models.adapters.parameter_layout import ParameterLayout
    from hyperbooth.models.adapters.stack import Adapter
    from hyperbooth.models.adapters.targets import select_targets
    from hyperbooth.models.hypernetwork.network import HyperNetwork, HyperNetworkConfig
    from hyperbooth.models.hypernetwork.predictor import BaseModelRef, Predictor
    from hyperbooth.models.metadata.base_fingerprint import fingerprint
    from hyperbooth.nodes.bridge.adapters.patching import base_weights
    from hyperbooth.nodes.bridge.images.clip_vision import encoder_ref
    from hyperbooth.nodes.bridge.model.layers import architecture, layer_shapes, trainable_layers

    draw = torch.Generator().manual_seed(0)
    targets = select_targets(layer_shapes(trainable_layers(model)), "attention")
    adapter = Adapter.create("lidb", targets, LiDBConfig(), draw)
    layout = ParameterLayout.of(adapter)
    network = HyperNetwork.create(HyperNetworkConfig(), layout, vision.config["hidden_size"], draw)
    network.set_normalization(layout.pack(adapter), torch.full((layout.parameter_count,), 1e-3))
    record = fingerprint([target.name for target in targets], base_weights(model))
    return Predictor(network, encoder_ref(vision), BaseModelRef(architecture(model), record), PROMPT)


def stages(base: Any, chosen: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """Return a function: seed of a random image -> seconds of each stage of one run."""
    model, clip, vae = base
    vision = encoder(chosen.small)
    network, call = predictor(model, vision), call_node.caller()
    (options,) = call("TrainingOptions", preview_every=0, checkpoint_every=0, precision=chosen.dtype)

    def run(seed: int) -> dict[str, float]:
        image = torch.rand(1, chosen.side, chosen.side, 3, generator=torch.Generator().manual_seed(seed))
        found: dict[str, float] = {}
        subject = timed(
            found, STAGES[0], call, "Subject", images=image, vae=vae, clip=clip, prompt=PROMPT, resolution=chosen.side
        )
        adapter = timed(
            found, STAGES[1], call, "Predict", hypernetwork=network, clip_vision=vision, image=image, model=model
        )
        timed(
            found, STAGES[2], call, "FastFinetune", model=model, subject=subject, adapter=adapter, steps=chosen.steps,
            seed=seed, clip=clip, options=options,
        )  # fmt: skip
        return found

    return run


def timed(found: dict[str, float], stage: str, call: Callable[..., Any], node: str, **inputs: Any) -> Any:
    """Return the node's first output; store its seconds, including the device's work, under ``stage``."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    made = call(node, **inputs)[0]
    wait()
    found[stage] = time.perf_counter() - began
    return made


def rows_of(runs: list[dict[str, float]], peak: int) -> list[Row]:
    """Return each stage and the total: the first run, which moves models to the device, and the median of others."""
    total = "one image to adapter"
    runs = [run | {total: sum(run.values())} for run in runs]
    return [
        {"name": name, "seconds_first": runs[0][name], "seconds": harness.median([run[name] for run in runs[1:]])}
        | ({"peak_bytes": peak} if name == total else {})
        for name in (*STAGES, total)
    ]  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = partial(parser.add_argument, type=int)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    parser.add_argument("--small", action="store_true", help="a small U-Net and encoder, for a quick run")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="precision of base and training"
    )
    whole("--side", default=512, help="side of the image in pixels")
    whole("--steps", default=STEPS, help="steps of fast fine-tuning")
    whole("--repeats", default=3, help="runs after the first; their median counts")
    whole("--threads", default=2, help="threads of PyTorch")
    chosen = parser.parse_args()
    for name, least in (("side", 64), ("steps", 1), ("repeats", 1), ("threads", 1)):
        if getattr(chosen, name) < least:
            parser.error(f"--{name} is {getattr(chosen, name)}; give {least} or more")
    return chosen


@torch.inference_mode()
def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    dtype = getattr(torch, chosen.dtype)
    import_pack.import_comfyui()
    import_pack.load_pack()
    import comfy.sd
    import folder_paths

    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        path = checkpoint(Path(folder) / "sd15.safetensors", chosen.small, dtype)
        base = comfy.sd.load_checkpoint_guess_config(str(path), model_options={"dtype": dtype})[:3]
        run = stages(base, chosen)
        with harness.peak_memory() as peak:
            runs = [run(seed) for seed in range(chosen.repeats + 1)]
    rows = rows_of(runs, peak.bytes)
    print(harness.table(rows, COLUMNS))
    usual = (chosen.small, chosen.side, chosen.steps, chosen.dtype) == (False, 512, STEPS, "bfloat16")
    kept = [chosen.json] if chosen.json else []
    if usual and torch.cuda.is_available():
        print(*(aim.verdict({row["name"]: row for row in rows}) for aim in AIMS), sep="\n")
        kept.append(harness.RESULTS / "one_picture.json")
    rows = [row | {"steps": chosen.steps, "side": chosen.side, "dtype": chosen.dtype} for row in rows]
    harness.write_json("one_picture", harness.machine(chosen.threads), rows, *kept)


if __name__ == "__main__":
    main()
