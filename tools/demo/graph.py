"""Change a shipped workflow to the demo's images and model, and sample five scenes with and without the adapter."""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

from tools.comfy_harness.api_graphs import Graph, find
from tools.comfy_harness.import_pack import ROOT

WORKFLOWS = ROOT / "workflows" / "api"
MANY, ONE = "hyperbooth_dreambooth_lora", "hyperbooth_fast_finetune"
"""The shipped workflow for several images, and the one for a single image and a hypernetwork."""
BASE, PREDICTED, OURS = "base", "predicted", "personalized"


@dataclass(frozen=True)
class DemoConfig:
    """Describe the changes to the shipped workflow.

    Args:
        images: names of image files in ComfyUI's input folder.
        checkpoint: name of the checkpoint in ComfyUI's folder.
        prompt: prompt for the subject.
        class_prompt: prompt for the class.
        scenes: prompts, with {} in place of the subject.
        settings: node class -> inputs that differ from the shipped workflow's.
        prior: whether images of the class are sampled for prior preservation.
        network: name of a hypernetwork in ComfyUI's folder, which predicts from the one image; None: a LoRA is trained.
    """

    images: list[str]
    checkpoint: str
    prompt: str
    class_prompt: str
    scenes: list[str]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    prior: bool = True
    network: str | None = None


def graph_of(config: DemoConfig) -> Graph:
    """Return the workflow in API format; images of scene ``n`` are saved as ``base_n`` and ``personalized_n``."""
    graph = json.loads((WORKFLOWS / f"{ONE if config.network else MANY}.json").read_text())
    if config.network:
        set_one_image(graph, config)
    else:
        set_images(graph, config)
    settings = {
        **config.settings,
        "CheckpointLoaderSimple": {"ckpt_name": config.checkpoint},
        "HyperBoothSave": {"filename_prefix": "loras/subject", "trigger": config.prompt},
    }
    for node in graph.values():
        node["inputs"].update(settings.get(node["class_type"], {}))
        given = node["inputs"].keys()
        node["inputs"].update({k: v for k, v in prompts(config).items() if k in given})
    add_scenes(graph, config)
    return graph


def prompts(config: DemoConfig) -> dict[str, str]:
    """Return the values of the inputs that hold a prompt."""
    return {"prompt": config.prompt, "class_prompt": config.class_prompt}


def set_one_image(graph: Graph, config: DemoConfig) -> None:
    """Set the image and the small world's hypernetwork, whose encoder has a node of its own."""
    graph[find(graph, "LoadImage")]["inputs"]["image"] = config.images[0]
    graph[find(graph, "CLIPVisionLoader")] |= {"class_type": "SmallWorldVision", "inputs": {}}
    graph[find(graph, "HyperBoothLoadHyperNetwork")]["inputs"]["hypernetwork_name"] = config.network


def set_images(graph: Graph, config: DemoConfig) -> None:
    """Add a Load Image node for each image; remove the class images unless ``prior`` is set."""
    if not config.prior:
        graph.pop(find(graph, "HyperBoothClassImages"))
        graph[find(graph, "HyperBoothSubject")]["inputs"].pop("class_images")
    for name in [name for name, node in graph.items() if node["class_type"] == "LoadImage"]:
        del graph[name]
    inputs = graph[find(graph, "CreateList")]["inputs"]
    inputs.clear()
    for index, image in enumerate(config.images):
        graph[f"image_{index}"] = {"class_type": "LoadImage", "inputs": {"image": image}}
        inputs[f"inputs.input{index}"] = [f"image_{index}", 0]


def kinds(config: DemoConfig) -> dict[str, str]:
    """Return the model with which each scene is sampled -> the subject in its prompt."""
    return {BASE: config.class_prompt, **({PREDICTED: config.prompt} if config.network else {}), OURS: config.prompt}


def add_scenes(graph: Graph, config: DemoConfig) -> None:
    """Replace the workflow's one sample by samples of each scene with each model of :func:`kinds`.

    These are the base, the base with the predicted adapter if there is one, and the base with the trained adapter.
    """
    sampler, apply = find(graph, "KSampler"), find(graph, "HyperBoothApply")
    decode, save = find(graph, "VAEDecode"), find(graph, "SaveImage")
    text = graph[sampler]["inputs"]["positive"][0]
    parts = {name: graph.pop(name) for name in (sampler, decode, save, text)}
    models = {BASE: find(graph, "CheckpointLoaderSimple"), OURS: apply}  # each outputs a model, then a clip
    if config.network:
        models[PREDICTED] = PREDICTED
        graph[PREDICTED] = redirected(
            graph[apply], {find(graph, "HyperBoothFastFinetune"): find(graph, "HyperBoothPredict")}
        )
    for number, scene in enumerate(config.scenes):
        for kind, who in kinds(config).items():
            names = {name: f"{kind}_{number}_{name}" for name in parts}
            for name, node in parts.items():
                graph[names[name]] = redirected(node, {**names, apply: models[kind]})
            graph[names[text]]["inputs"]["text"] = scene.format(who)
            graph[names[save]]["inputs"]["filename_prefix"] = f"{kind}_{number}"


def redirected(node: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a copy of ``node`` whose inputs from nodes in ``names`` come from their copies."""
    node = copy.deepcopy(node)
    for name, value in node["inputs"].items():
        if isinstance(value, list):
            node["inputs"][name] = [names.get(value[0], value[0]), value[1]]
    return node
