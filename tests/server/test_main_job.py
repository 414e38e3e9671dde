"""The main job on a real server, over its API and websocket, as users' programs run it."""

import copy
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tools.comfy_harness.api_graphs import Graph, changed, find, saved, small_job
from tools.comfy_harness.server import Outcome, Server


@pytest.fixture
def graph(checkpoint: Path) -> Graph:
    """Return the shipped API workflow, at a size for two cores."""
    return small_job(checkpoint.name)


def ran(graph: Graph, outcome: Outcome) -> set[str]:
    return {graph[name]["class_type"] for name in outcome.executed}


def picture(server: Server, outcome: Outcome, graph: Graph) -> np.ndarray:
    (entry,) = outcome.outputs[find(graph, "SaveImage")]["images"]
    return np.asarray(Image.open(server.output / entry["subfolder"] / entry["filename"]), dtype=int)


def test_the_shipped_workflow_runs(server: Server, graph: Graph) -> None:
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    train = find(graph, "HyperBoothTrain")
    assert outcome.progress[train][-1] == 8
    assert any(Image.open(io.BytesIO(data)).width >= 512 for data in outcome.images), "the loss curve was shown"
    assert picture(server, outcome, graph).shape == (64, 64, 3)
    report = outcome.outputs[find(graph, "PreviewAny")]["text"][0]
    assert re.search(r"\b8 steps of 1\b.*\b4 images\b.*\b2 class images\b", report)
    tensors = load_file(saved(server, graph, outcome))
    assert len(tensors) == 3 * 32 and all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_the_stock_loader_makes_the_same_picture_from_the_file(server: Server, graph: Graph) -> None:
    graph = changed(graph, "HyperBoothSave", precision="float32")
    ours = server.run(graph)
    path = saved(server, graph, ours)
    stock = copy.deepcopy(graph)
    apply = stock[find(stock, "HyperBoothApply")]
    apply["class_type"] = "LoraLoader"
    apply["inputs"].pop("adapter")
    apply["inputs"]["lora_name"] = path.name
    theirs = server.run(stock)
    assert theirs.status == "success", theirs.message
    assert np.abs(picture(server, ours, graph) - picture(server, theirs, stock)).max() <= 1
    loading = copy.deepcopy(graph)
    loading["load"] = {"class_type": "HyperBoothLoad", "inputs": {"adapter_name": path.name}}
    loading[find(loading, "HyperBoothApply")]["inputs"]["adapter"] = ["load", 0]
    again = server.run(loading)
    assert again.status == "success", again.message
    assert np.array_equal(picture(server, ours, graph), picture(server, again, loading))


def test_queued_again_it_is_served_from_the_cache_and_a_changed_input_trains_again(
    server: Server, graph: Graph
) -> None:
    first = server.run(changed(graph, "HyperBoothTrain", seed=11))
    path = saved(server, graph, first)
    again = server.run(changed(graph, "HyperBoothTrain", seed=11))
    assert again.status == "success" and "HyperBoothTrain" not in ran(graph, again)
    other = server.run(changed(graph, "HyperBoothTrain", seed=12))
    assert "HyperBoothTrain" in ran(graph, other) and "HyperBoothSubject" not in ran(graph, other)
    server.post("/free", {"unload_models": True, "free_memory": True})
    third = server.run(changed(graph, "HyperBoothTrain", seed=11, resume="start over"))
    assert "HyperBoothTrain" in ran(graph, third)
    assert_same_file(path, saved(server, graph, third), True)
    assert_same_file(path, saved(server, graph, other), False)


def assert_same_file(a: Path, b: Path, same: bool) -> None:
    first, second = load_file(a), load_file(b)
    assert a != b and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first) == same


def test_cancel_stops_at_once_and_the_server_goes_on_with_the_model_unchanged(server: Server, graph: Graph) -> None:
    plain = copy.deepcopy(graph)
    plain[find(plain, "KSampler")]["inputs"]["model"] = [find(plain, "CheckpointLoaderSimple"), 0]
    before = picture(server, server.run(changed(plain, "KSampler", seed=1)), plain)
    train = find(graph, "HyperBoothTrain")
    last: list[int] = []

    def cancel(node: str, value: int) -> None:
        if node == train and value >= 3:
            if not last:
                server.interrupt()
            last.append(value)

    outcome = server.run(changed(graph, "HyperBoothTrain", steps=5000, seed=77), on_progress=cancel)
    assert outcome.status == "interrupted"
    assert last[-1] - last[0] <= 2
    again = server.run(changed(changed(plain, "KSampler", seed=1), "SaveImage", filename_prefix="after_cancel"))
    assert again.status == "success"
    assert np.array_equal(before, picture(server, again, plain))


BAD_INPUTS = {
    "rank": ("HyperBoothMethodLoRA", {"rank": 321}, r"\brank 321\b.*\b320 x 320\b"),
    "targets": ("HyperBoothMethodLoRA", {"targets": "nonsense"}, "targets"),
    "learning rate, negative": ("HyperBoothMethodLoRA", {"learning_rate": -1e-4}, "learning_rate"),
    "learning rate, NaN": ("HyperBoothMethodLoRA", {"learning_rate": float("nan")}, "learning_rate"),
    "alpha, NaN": ("HyperBoothMethodLoRA", {"alpha": float("nan")}, "alpha"),
    "no steps": ("HyperBoothTrain", {"steps": 0}, "steps"),
    "no batch": ("HyperBoothTrain", {"batch_size": 0}, "batch_size"),
    "no class prompt": ("HyperBoothSubject", {"class_prompt": ""}, r"\bclass_prompt\b"),
    "no prompt": ("HyperBoothSubject", {"prompt": " "}, r"\bprompt\b"),
    "outside the output folder": (
        "HyperBoothSave",
        {"filename_prefix": "../../outside"},
        "prefix '../../outside'",
    ),
    "an absolute path": ("HyperBoothSave", {"filename_prefix": "/tmp/outside"}, "prefix '/tmp/outside'"),
    "no name": ("HyperBoothSave", {"filename_prefix": " "}, "filename_prefix ''"),
    "a NUL in the name": ("HyperBoothSave", {"filename_prefix": "a\0b"}, r"filename_prefix .*a.+b"),
    "a very long name": ("HyperBoothSave", {"filename_prefix": "a" * 300}, r"filename_prefix .*a{20}"),
}


@pytest.mark.parametrize("case", list(BAD_INPUTS))
def test_bad_input_is_named(server: Server, graph: Graph, case: str) -> None:
    kind, inputs, message = BAD_INPUTS[case]
    before = results(server)
    outcome = server.run(changed(changed(graph, "HyperBoothTrain", steps=2), kind, **inputs))
    # An output that is refused at queueing does not keep the others from running.
    said = outcome.message if outcome.status == "error" else json.dumps(outcome.refused)
    assert re.search(message, said)
    assert results(server) == before


def results(server: Server) -> list[Path]:
    """Return the files that users find: all but training states."""
    return sorted(path for path in server.output.rglob("*.safetensors") if path.parent.name != "hyperbooth_states")


def test_images_smaller_than_a_latent_cell_are_refused(server: Server, graph: Graph) -> None:
    Image.new("RGB", (5, 90)).save(server.base / "input" / "narrow.png")
    outcome = server.run(changed(graph, "LoadImage", image="narrow.png"))
    assert re.search(r"\bimage 1\b.*\b5 x 90\b.*\b8 x 8\b", outcome.message)


def test_captions_must_match_the_images(server: Server, graph: Graph) -> None:
    graph = copy.deepcopy(graph)
    graph["text"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "one\ntwo"}}
    graph[find(graph, "HyperBoothSubject")]["inputs"]["captions"] = ["text", 0]
    assert re.search(r"\bcaptions\b.*\b2\b.*\b4 images\b", server.run(graph).message)


def test_a_list_in_place_of_one_prompt_is_refused(server: Server, graph: Graph) -> None:
    graph = copy.deepcopy(graph)
    for text in ("one", "two"):
        graph[text] = {"class_type": "PrimitiveString", "inputs": {"value": text}}
    graph["list"] = {"class_type": "CreateList", "inputs": {"inputs.input0": ["one", 0], "inputs.input1": ["two", 0]}}
    graph[find(graph, "HyperBoothSubject")]["inputs"]["prompt"] = ["list", 0]
    assert re.search(r"\bprompt\b.*\b2\b.*\bcaptions\b", server.run(graph).message)


def test_windows_separators_in_a_name_make_folders(server: Server, graph: Graph) -> None:
    outcome = server.run(changed(graph, "HyperBoothSave", filename_prefix="loras\\from windows"))
    assert saved(server, graph, outcome).parent == server.output / "loras"


def test_a_text_encoder_method_needs_the_clip(server: Server, graph: Graph) -> None:
    graph = changed(graph, "HyperBoothMethodLoRA", text_encoder=True)
    graph[find(graph, "HyperBoothTrain")]["inputs"].pop("clip")
    assert re.search(r"\bclip\b.*\btext_encoder\b", server.run(graph).message)


def test_no_image_is_refused(server: Server, graph: Graph) -> None:
    graph = copy.deepcopy(graph)
    del graph[find(graph, "HyperBoothSubject")]["inputs"]["images"]
    outcome = server.run(graph)
    assert outcome.status == "error" and "images" in outcome.message


def test_the_text_encoder_trains_too(server: Server, graph: Graph) -> None:
    graph = changed(graph, "HyperBoothMethodLoRA", text_encoder=True)
    outcome = server.run(changed(graph, "HyperBoothTrain", steps=2))
    assert outcome.status == "success", outcome.message
    names = load_file(saved(server, graph, outcome))
    assert sum(name.startswith("text_encoders.clip_l.") for name in names) == 3 * 48


def test_every_input_has_a_tooltip(server: Server) -> None:
    ours = {name: info for name, info in server.get("/object_info").items() if name.startswith("HyperBooth")}
    assert len(ours) >= 11
    for name, info in ours.items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        for key, (_, options) in inputs.items():
            assert options.get("tooltip"), f"{name}.{key}"
        assert all(info["output_tooltips"]), name
