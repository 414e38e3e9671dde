"""A bank on a real server, over its API: built, extended, opened."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

from tools.comfy_harness.api_graphs import Graph
from tools.comfy_harness.server import Server


def person(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")


def building(checkpoint: Path, **inputs: Any) -> Graph:
    """Return a graph of checkpoint, method and a short build."""
    return {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name}},
        "method": {
            "class_type": "HyperBoothMethodLiDB",
            "inputs": {
                "rank": 1, "a": 8, "b": 4, "basis_seed": 0, "targets": "attention", "learning_rate": 1e-2,
                "text_encoder": False, "text_encoder_lr": 0.0,
            },
        },
        "build": {
            "class_type": "HyperBoothBuildBank",
            "inputs": {
                "model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "folder": "faces",
                "method": ["method", 0], "prompt": "a photo of sks face", "steps": 2, "subjects_per_batch": 2,
                "seed": 0, "resolution": 64, **inputs,
            },
        },
    }  # fmt: skip


def test_a_bank_is_built_extended_and_opened(server: Server, checkpoint: Path) -> None:
    faces = server.base / "input" / "faces"
    for seed, name in enumerate(("anna", "ben", "cleo")):
        person(faces / name, seed)
    graph = building(checkpoint) | {
        "picture": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": "shared"}},
    }
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    said = next(server.output.glob("shared*.png")).read_bytes()
    assert b"is_changed" in said and b"anna" not in said, "the graph in an image names nobody"
    assert outcome.progress["build"][-1] == 3 * 2
    report = outcome.outputs["build"]["text"][0]
    assert re.search(r"\b3 subjects\b.*\b3 images\b.*\b2 shards\b.*\b3 .*\bnew\b", report)
    shards = sorted((server.output / "hyperbooth_banks" / "faces").glob("*.safetensors"))
    assert len(shards) == 2
    with safe_open(shards[0], "pt") as file:
        assert set(file.keys()) == {"theta", "images", "latents"}

    assert server.run(graph).executed == [], "nothing changed, so nothing ran"
    person(faces / "dan", 9)
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    assert re.search(r"\b4 subjects\b.*\b1 .*\bnew\b", outcome.outputs["build"]["text"][0])

    names = server.get("/object_info/HyperBoothLoadBank")["HyperBoothLoadBank"]["input"]["required"]["bank_name"]
    assert "faces" in str(names)
    refused = server.run(building(checkpoint, steps=3))
    assert refused.status == "error" and re.search(r"bank 'faces'.*\bsteps 2\b.*\bsteps 3\b", refused.message)
