"""Change the shipped API workflows as a program would before queuing them."""

import copy
import json
from pathlib import Path
from typing import Any

from .import_pack import ROOT
from .server import Outcome, Server

Graph = dict[str, Any]
SUFFIX = ".safetensors"


def small_job(checkpoint: str, steps: int = 8, name: str = "hyperbooth_dreambooth_lora") -> Graph:
    """Return a shipped workflow on a small checkpoint, with sizes for two cores."""
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    sizes: dict[str, dict[str, Any]] = {
        "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
        "HyperBoothClassImages": {"count": 2, "steps": 2, "resolution": 64},
        "HyperBoothSubject": {"resolution": 64},
        "HyperBoothMethodLoRA": {"learning_rate": 1e-3},
        "HyperBoothTrain": {"steps": steps},
        "HyperBoothBuildBank": {"steps": steps, "resolution": 64},
        "HyperBoothTrainHyperNetwork": {"steps": steps, "batch_size": 2, "width": 32},
        "HyperBoothFastFinetune": {"steps": steps},
        "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": 1},
        "KSampler": {"steps": 2},
    }
    for node in graph.values():
        node["inputs"].update(sizes.get(node["class_type"], {}))
    return graph


def find(graph: Graph, kind: str) -> str:
    """Return the id of the first node of class ``kind``."""
    return next(name for name, node in graph.items() if node["class_type"] == kind)


def changed(graph: Graph, kind: str, **inputs: Any) -> Graph:
    """Return a copy in which the first node of class ``kind`` has other inputs."""
    other = copy.deepcopy(graph)
    other[find(other, kind)]["inputs"].update(inputs)
    return other


def with_options(server: Server, graph: Graph, **inputs: Any) -> Graph:
    """Return a copy whose Train node has Training Options: ``inputs``, and the server's defaults for the others."""
    info = server.get("/object_info/HyperBoothTrainingOptions")["HyperBoothTrainingOptions"]
    defaults = {name: spec[1]["default"] for name, spec in info["input"]["required"].items()}
    other = changed(graph, "HyperBoothTrain", options=["options", 0])
    other["options"] = {"class_type": "HyperBoothTrainingOptions", "inputs": {**defaults, **inputs}}
    return other


def saved(server: Server, graph: Graph, outcome: Outcome) -> Path:
    """Return the path of the file that Save Adapter wrote."""
    text = outcome.outputs[find(graph, "HyperBoothSave")]["text"][0]
    return server.output / (text.removeprefix("saved ").split(SUFFIX)[0] + SUFFIX)
