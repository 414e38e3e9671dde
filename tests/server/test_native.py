"""Files in format hyperbooth on a real server: trained, saved, and opened by name in ComfyUI's own loaders."""

import copy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.comfy_harness.api_graphs import Graph, find, saved, small_job
from tools.comfy_harness.server import Outcome, Server

METHODS = {
    "HyperBoothMethodPaRa": {"rank": 2, "init": "random", "targets": "attention", "learning_rate": 3e-2},
    "HyperBoothMethodLiDB": {
        "rank": 1, "a": 40, "b": 30, "basis_seed": 3, "targets": "attention", "learning_rate": 3e-1,
        "text_encoder": True, "text_encoder_lr": 1e-1,
    },
}  # fmt: skip
"""Learning rates whose effect is visible in an image after three steps."""
LOADERS = ("LoraLoader", "LoraLoaderBypass")
ROUNDED = 4
"""Of 255. On a CPU the text encoder is in half precision: *Apply* and *Load LoRA* round its changed weights to it,
bypass the adapter alone. That is 0.0006 of the text's vectors, and an image of random weights at cfg 7 shows it."""
STRENGTHS = {"strength_model": 0.9, "strength_clip": 0.7}


def training(checkpoint: Path, method: str, precision: str) -> Graph:
    """Return the main job with another method, saved in that precision."""
    graph = small_job(checkpoint.name, 3)
    graph[find(graph, "HyperBoothMethodLoRA")] |= {"class_type": method, "inputs": METHODS[method]}
    graph[find(graph, "HyperBoothApply")]["inputs"] |= STRENGTHS
    graph[find(graph, "HyperBoothSave")]["inputs"] |= {
        "filename_prefix": f"loras/{method}_{precision}", "precision": precision
    }  # fmt: skip
    return graph


def sampling(graph: Graph, loader: str | None, name: str = "") -> Graph:
    """Return only its sampling, with the file in that loader instead: a stock one, *Load Adapter*, or none."""
    needed = ("CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEDecode", "SaveImage")
    apply, source = find(graph, "HyperBoothApply"), find(graph, "CheckpointLoaderSimple")
    small = copy.deepcopy({key: node for key, node in graph.items() if node["class_type"] in needed})
    inputs = {"model": [source, 0], "clip": [source, 1], **STRENGTHS}
    if loader == "HyperBoothLoad":
        small["load"] = {"class_type": loader, "inputs": {"adapter_name": name}}
        small[apply] = {"class_type": "HyperBoothApply", "inputs": {**inputs, "adapter": ["load", 0]}}
    elif loader:
        small[apply] = {"class_type": loader, "inputs": {**inputs, "lora_name": name}}
    else:
        none = {**inputs, "strength_model": 0.0, "strength_clip": 0.0, "lora_name": name}
        small[apply] = {"class_type": "LoraLoader", "inputs": none}
    return small


def picture(server: Server, graph: Graph, outcome: Outcome) -> np.ndarray:
    assert outcome.status == "success", outcome.message
    (entry,) = outcome.outputs[find(graph, "SaveImage")]["images"]
    return np.asarray(Image.open(server.output / entry["subfolder"] / entry["filename"]), dtype=int)


def pictured(server: Server, graph: Graph) -> np.ndarray:
    return picture(server, graph, server.run(graph))


@pytest.mark.parametrize(
    ("precision", "method"), [("float16", "HyperBoothMethodPaRa"), ("float32", "HyperBoothMethodLiDB")]
)
def test_the_stock_loaders_make_applys_picture(server: Server, checkpoint: Path, method: str, precision: str) -> None:
    """In half precision the file differs from what was trained, and is compared with *Load Adapter* of it."""
    graph = training(checkpoint, method, precision)
    trained = server.run(graph)
    of_training = picture(server, graph, trained)
    name = saved(server, graph, trained).name
    ours = pictured(server, sampling(graph, "HyperBoothLoad", name))
    if precision == "float32":
        assert np.abs(ours - of_training).max() <= 1
    ordinary, bypassed = (pictured(server, sampling(graph, loader, name)) for loader in LOADERS)
    assert np.abs(ordinary - ours).max() <= 1
    assert np.abs(bypassed - ours).max() <= (ROUNDED if METHODS[method].get("text_encoder") else 1)
    assert np.abs(pictured(server, sampling(graph, None, name)) - ours).max() > 5 * ROUNDED


def test_a_file_cut_short_fails_and_the_server_goes_on(server: Server, checkpoint: Path) -> None:
    method = "HyperBoothMethodLiDB"
    graph = training(checkpoint, method, "float32")
    path = saved(server, graph, server.run(graph))
    before = pictured(server, sampling(graph, "LoraLoader", path.name))
    cut = path.with_name(f"{method}_cut.safetensors")
    cut.write_bytes(path.read_bytes()[:-200])
    for loader in (*LOADERS, "HyperBoothLoad"):
        outcome = server.run(sampling(graph, loader, cut.name))
        assert outcome.status == "error" and "incomplete metadata" in outcome.message, loader
    cut.unlink()
    assert np.array_equal(pictured(server, sampling(graph, "LoraLoader", path.name)), before)
