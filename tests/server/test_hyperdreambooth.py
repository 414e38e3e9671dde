"""HyperDreamBooth's workflows on a real server, one after the other: bank and network, prediction, forty steps."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tools.comfy_harness.api_graphs import changed, find, saved, small_job
from tools.comfy_harness.server import Server
from tools.comfy_harness.tiny_encoders import write_clip_vision

PEOPLE = ("anna", "ben", "cleo", "dan", "eve")


@pytest.fixture(scope="module")
def vision(server: Server) -> Iterator[str]:
    """Write an encoder, and people with an image each, in folders of their own and all in one."""
    path = write_clip_vision(server.base / "models" / "clip_vision" / "vit_l.safetensors")
    together = server.base / "input" / "many faces"
    together.mkdir()
    for seed, name in enumerate(PEOPLE):
        folder = server.base / "input" / "people" / name
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        for place in (folder / "one.png", together / f"{name}.png"):
            Image.fromarray(pixels).save(place)
    yield path.name
    path.unlink()


def test_from_people_to_a_picture_of_a_new_one(server: Server, checkpoint: Path, vision: str) -> None:
    graph = small_job(checkpoint.name, 2, "hyperbooth_hypernetwork")
    graph["2"]["inputs"]["clip_name"] = vision
    graph[find(graph, "HyperBoothBuildBank")]["inputs"]["folder"] = "people"
    trained = server.run(graph)
    assert trained.status == "success", trained.message
    assert "5 subjects " in trained.outputs["5"]["text"][0]
    for report in ("9", "10"):
        assert all(control in trained.outputs[report]["text"][0] for control in ("mean", "shuffled", "own"))
    name = trained.outputs["8"]["text"][0].removeprefix("saved ")
    assert load_file(server.output / name)

    links = []
    for workflow in ("hyperbooth_predict", "hyperbooth_fast_finetune"):
        graph = small_job(checkpoint.name, 2, workflow)
        graph["2"]["inputs"]["clip_name"] = vision
        graph["3"]["inputs"]["hypernetwork_name"] = Path(name).name
        graph["4"]["inputs"]["image"] = "people/dan/one.png"
        outcome = server.run(graph)
        assert outcome.status == "success", outcome.message
        links.append({key.split("/")[0] for key in load_file(saved(server, graph, outcome)) if "/" in key})
    assert links[1] == {"1", "2"}, "the prediction, then the LoRA"
    assert outcome.progress["10"][-1] == 2
    again = server.run(changed(graph, "HyperBoothFastFinetune", seed=1))
    assert again.status == "success" and "10" in again.executed
    assert not {"3", "5"} & set(again.executed), "nothing is predicted twice"


def test_each_image_is_trained_on_the_text_of_its_own_file(server: Server, checkpoint: Path, vision: str) -> None:
    for seed, name in enumerate(PEOPLE):
        folder = server.base / "input" / "told" / name
        folder.mkdir(parents=True)
        for number, text in enumerate(("", "a photo of sks face in the snow")):
            pixels = np.random.default_rng(10 * seed + number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(text)
    graph = small_job(checkpoint.name, 2, "hyperbooth_hypernetwork")
    graph["2"]["inputs"]["clip_name"] = vision
    build = graph[find(graph, "HyperBoothBuildBank")]["inputs"]
    build["folder"] = "told"
    method = graph[find(graph, "HyperBoothMethodLiDB")]["inputs"]
    method["text_encoder"] = True
    for node in graph.values():
        if node["class_type"] == "HyperBoothTrainHyperNetwork":
            node["inputs"]["input_pictures"] = 1
    refused = server.run(graph)
    assert refused.status == "error" and re.search(r"\btext_encoder\b.*\bcaptions\b", refused.message)
    method["text_encoder"] = False
    trained = server.run(graph)
    assert trained.status == "success", trained.message
    assert re.search(r"\bcaptions\b.*\b5 of 10\b", trained.outputs["5"]["text"][0])
    assert "(10 images)" in trained.outputs["9"]["text"][0]
