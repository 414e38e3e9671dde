"""The shipped workflow for this demo's photographs and model, and the same five scenes with and without the adapter."""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

from tools.comfy_harness.api_graphs import Graph, find
from tools.comfy_harness.import_pack import ROOT

WORKFLOWS = ROOT / "workflows" / "api"
MANY, ONE = "hyperbooth_dreambooth_lora", "hyperbooth_fast_finetune"
"""The shipped workflow for a few photographs, and the one for a single one and a hypernetwork."""
BASE, PREDICTED, OURS = "base", "predicted", "personalized"


@dataclass(frozen=True)
class Job:
    """What the workflow is changed to.

    Args:
        photographs: names in ComfyUI's input folder.
        checkpoint: its name in ComfyUI's folder.
        prompt, class_prompt: what the photographs are trained under, and what others of the class are.
        scenes: prompts, with {} for who is in them.
        settings: class of node -> inputs that differ from the shipped workflow's.
        prior: whether images of the class are sampled and trained on too.
        network: a hypernetwork's name in ComfyUI's folder, to predict from the one photograph; none: a LoRA is trained.
    """

    photographs: list[str]
    checkpoint: str
    prompt: str
    class_prompt: str
    scenes: list[str]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    prior: bool = True
    network: str | None = None


def graph_of(job: Job) -> Graph:
    """The workflow in API format; images of scene ``n`` are saved as ``base_n`` and ``personalized_n``."""
    graph = json.loads((WORKFLOWS / f"{ONE if job.network else MANY}.json").read_text())
    if job.network:
        of_one_photograph(graph, job)
    else:
        of_many_photographs(graph, job)
    settings = {
        **job.settings,
        "CheckpointLoaderSimple": {"ckpt_name": job.checkpoint},
        "HyperBoothSave": {"filename_prefix": "loras/subject", "trigger": job.prompt},
    }
    for node in graph.values():
        node["inputs"].update(settings.get(node["class_type"], {}))
        given = node["inputs"].keys()
        node["inputs"].update({k: v for k, v in prompts(job).items() if k in given})
    add_scenes(graph, job)
    return graph


def prompts(job: Job) -> dict[str, str]:
    """The names of inputs that hold a prompt."""
    return {"prompt": job.prompt, "class_prompt": job.class_prompt}


def of_one_photograph(graph: Graph, job: Job) -> None:
    """Predicted by the small world's hypernetwork, whose encoder has a node of its own."""
    graph[find(graph, "LoadImage")]["inputs"]["image"] = job.photographs[0]
    graph[find(graph, "CLIPVisionLoader")] |= {"class_type": "SmallWorldVision", "inputs": {}}
    graph[find(graph, "HyperBoothLoadHyperNetwork")]["inputs"]["hypernetwork_name"] = job.network


def of_many_photographs(graph: Graph, job: Job) -> None:
    """As many Load Image nodes as there are photographs; without class images, if there are to be none."""
    if not job.prior:
        graph.pop(find(graph, "HyperBoothClassImages"))
        graph[find(graph, "HyperBoothSubject")]["inputs"].pop("class_images")
    for name in [name for name, node in graph.items() if node["class_type"] == "LoadImage"]:
        del graph[name]
    gather = graph[find(graph, "CreateList")]["inputs"]
    gather.clear()
    for index, photograph in enumerate(job.photographs):
        graph[f"photograph_{index}"] = {"class_type": "LoadImage", "inputs": {"image": photograph}}
        gather[f"inputs.input{index}"] = [f"photograph_{index}", 0]


def kinds(job: Job) -> dict[str, str]:
    """What each scene is sampled with -> who is in its prompt."""
    return {BASE: job.class_prompt, **({PREDICTED: job.prompt} if job.network else {}), OURS: job.prompt}


def add_scenes(graph: Graph, job: Job) -> None:
    """In place of the workflow's one sample: each scene, by the model as it was loaded, with the adapter that was
    predicted, if one was, and with the one that was trained."""
    sampler, apply = find(graph, "KSampler"), find(graph, "HyperBoothApply")
    decode, save = find(graph, "VAEDecode"), find(graph, "SaveImage")
    text = graph[sampler]["inputs"]["positive"][0]
    parts = {name: graph.pop(name) for name in (sampler, decode, save, text)}
    models = {BASE: find(graph, "CheckpointLoaderSimple"), OURS: apply}  # each gives a model, then a clip
    if job.network:
        models[PREDICTED] = PREDICTED
        graph[PREDICTED] = renamed(
            graph[apply], {find(graph, "HyperBoothFastFinetune"): find(graph, "HyperBoothPredict")}
        )
    for number, scene in enumerate(job.scenes):
        for kind, who in kinds(job).items():
            names = {name: f"{kind}_{number}_{name}" for name in parts}
            for name, node in parts.items():
                graph[names[name]] = renamed(node, {**names, apply: models[kind]})
            graph[names[text]]["inputs"]["text"] = scene.format(who)
            graph[names[save]]["inputs"]["filename_prefix"] = f"{kind}_{number}"


def renamed(node: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A copy that takes what came from a node in `names` from that node's copy."""
    node = copy.deepcopy(node)
    for name, value in node["inputs"].items():
        if isinstance(value, list):
            node["inputs"][name] = [names.get(value[0], value[0]), value[1]]
    return node
