"""The other shipped workflows on a real server, as they are but for sizes."""

import copy
import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.reports import line_of, mentions
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tools.comfy_harness.api_graphs import changed, find, saved, small_job
from tools.comfy_harness.server import Server
from tools.comfy_harness.tiny_encoders import write_clip, write_dino


def test_full_dreambooth_saves_a_checkpoint_that_loads(server: Server, checkpoint: Path) -> None:
    graph = small_job(checkpoint.name, 3, "hyperbooth_dreambooth_full")
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    report = outcome.outputs[find(graph, "PreviewAny")]["text"][0]
    assert "full (" in report and "held-out" in report
    (path,) = (server.output / "checkpoints").glob("sks_dog_*.safetensors")
    before, after = load_file(checkpoint), load_file(path)
    changed_weights = [name for name in before if name in after and not torch.equal(before[name], after[name])]
    assert changed_weights and all(name.startswith("model.diffusion_model.") for name in changed_weights)


def test_a_folder_becomes_a_lora_that_the_stock_loader_takes(server: Server, checkpoint: Path) -> None:
    graph = small_job(checkpoint.name, 6, "hyperbooth_folder_lora")
    graph = changed(graph, "HyperBoothMethodLoRA", learning_rate=1e-3)
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    path = saved(server, graph, outcome)
    with safe_open(path, framework="pt") as file:
        assert all(name.startswith("lora_unet_") for name in file.keys())  # noqa: SIM118
        assert file.metadata()["ss_base_model_version"] == "sd_1.5"
    stock = changed(graph, "HyperBoothApply")
    apply = stock[find(stock, "HyperBoothApply")]
    apply["class_type"] = "LoraLoader"
    apply["inputs"] = {**apply["inputs"], "lora_name": path.name}
    apply["inputs"].pop("adapter")
    del stock[find(stock, "HyperBoothSave")]
    theirs = server.run(stock)
    assert theirs.status == "success", theirs.message


def test_a_folder_that_is_not_there_is_named(server: Server, checkpoint: Path) -> None:
    graph = changed(small_job(checkpoint.name, 2, "hyperbooth_folder_lora"), "HyperBoothImagesFromFolder", folder="no")
    outcome = server.run(graph)
    assert outcome.status == "error" and "folder 'no'" in outcome.message


def test_a_word_and_a_lora_on_top_and_the_stock_nodes_find_the_word(server: Server, checkpoint: Path) -> None:
    graph = small_job(checkpoint.name, 3, "hyperbooth_textual_inversion")
    graph = changed(graph, "HyperBoothMethodTextualInversion", learning_rate=0.05)
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    report, over = (outcome.outputs[name]["text"][0] for name in ("24", "25"))
    assert re.search(r"\bembedding:sks-dog\b.*\b2 .*\bclip_l\b", report) and "lora (rank 4" in over
    embedding = saved(server, graph, outcome)
    text = outcome.outputs[find(graph, "HyperBoothSave")]["text"][1]
    assert text.endswith(f" embedding:{embedding.stem}") and embedding.parent == server.output / "embeddings"
    assert load_file(embedding)["emb_params"].shape == (2, 768)
    with safe_open(embedding, framework="pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    prompt = "a photo of {} on a beach"
    word, stock, plain = (
        sampled(server, checkpoint, prompt.format(name), graph if name == "embedding:sks-dog" else None)
        for name in ("embedding:sks-dog", f"embedding:{embedding.stem}", "")
    )
    assert np.abs(word - stock).max() <= 1, "Apply Adapter's clip, and the file in the stock encoder"
    assert np.abs(word - plain).max() > 1


def sampled(server: Server, checkpoint: Path, text: str, graph: dict[str, Any] | None) -> np.ndarray:
    """Return the checkpoint's own image of ``text``, with the clip of ``graph``'s first Apply Adapter, if given."""
    whole = graph or small_job(checkpoint.name, 3, "hyperbooth_textual_inversion")
    needed = {"1", "18", "19", "20", "21", "22", "23", *(map(str, range(2, 12)) if graph else ())} - {"10"}
    small = copy.deepcopy({name: whole[name] for name in needed})
    clip = ["11", 1] if graph else ["1", 1]
    small["18"]["inputs"] |= {"clip": clip, "text": text}
    small["19"]["inputs"]["clip"], small["21"]["inputs"]["model"] = clip, ["1", 0]
    outcome = server.run(small)
    assert outcome.status == "success", outcome.message
    (entry,) = outcome.outputs["23"]["images"]
    return picture(server, entry)


CHAINS = {
    "hyperbooth_lidb": ["1. lidb (rank 1, a 100, b 50, basis seed 0)"],
    "hyperbooth_para": ["1. para (rank 4)"],
    "hyperbooth_para_then_lora": ["1. para (rank 4)", "2. lora (rank 8, alpha 8)", "part 2:"],
}
"""What Adapter Info reports of the stack that each workflow makes."""


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_trained_and_saved_and_the_stock_loader_gives_its_picture(
    server: Server, checkpoint: Path, name: str
) -> None:
    graph = small_job(checkpoint.name, 3, name)
    for node in graph.values():
        if node["class_type"] == "HyperBoothImagesFromFolder":
            node["inputs"]["folder"] = "my dog"
        if node["class_type"] == "KSampler":
            node["inputs"]["seed"] = 1
    graph = changed(graph, "HyperBoothSave", precision="float32")
    graph["info"] = {"class_type": "PreviewAny", "inputs": {"source": [find(graph, "HyperBoothInfo"), 0]}}
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    assert all(said in outcome.outputs["info"]["text"][0] for said in CHAINS[name])
    path = saved(server, graph, outcome)
    needed = {"1", "13", "14", "15", "16", "17", "18"}
    stock = copy.deepcopy({number: node for number, node in graph.items() if number in needed})
    loader = {"model": ["1", 0], "clip": ["1", 1], "lora_name": path.name}
    stock["11"] = {"class_type": "LoraLoader", "inputs": {**loader, "strength_model": 1.0, "strength_clip": 1.0}}
    theirs = server.run(stock)
    assert theirs.status == "success", theirs.message
    ours, other = (picture(server, one.outputs["18"]["images"][0]) for one in (outcome, theirs))
    assert np.abs(ours - other).max() <= 1


def test_two_adapters_are_compared(server: Server, checkpoint: Path) -> None:
    graph = small_job(checkpoint.name, 3, "hyperbooth_compare")
    first = server.run(graph)
    assert not {"6", "7", "19"} & set(first.executed), "without the encoders nothing is trained in vain"
    said = first.refused["19"]["errors"][0]["details"]
    assert "encoder 'dino-vits16'" in said and "config.json" in said
    write_dino(server.base / "models" / "dino" / "dino-vits16")
    write_clip(server.base / "models" / "clip_score" / "clip-vit-base-patch32")
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    (said,) = outcome.outputs["21"]["text"]
    assert all(f"{score}: " in said for score in ("DINO", "CLIP-I", "CLIP-T"))
    named = [mentions(line, name) for line in said.splitlines() for name in ("LoRA", "PaRa")]
    assert 1 in named and 2 in named, "the best adapter is named twice in its line"
    (path,) = (server.output / "scores").glob("lora_or_para_*.csv")
    assert [row[0] for row in csv.reader(path.open())] == ["name", "LoRA", "PaRa"]
    assert max(outcome.progress["19"]) > 0


def test_a_hollow_network_trains_a_lora_for_the_whole_one(server: Server, checkpoint: Path) -> None:
    graph = changed(small_job(checkpoint.name, 4, "hyperbooth_hollowed_net"), "HyperBoothHollowedNet", samples=2)
    graph = changed(graph, "HyperBoothSave", precision="float32")
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    said, report = (outcome.outputs[name]["text"][0] for name in ("7", "20"))
    assert "hollow LoRA" in said and mentions(said, "2 samples")
    assert outcome.progress[find(graph, "HyperBoothHollowedNet")][-1] == 2
    assert line_of(report, "hollow:") and mentions(report, "2 batches of 1")
    with safe_open(saved(server, graph, outcome), framework="pt") as file:
        assert not [name for name in file.keys() if "middle_block" in name]  # noqa: SIM118
    assert not list(server.output.rglob("*.records"))


def picture(server: Server, entry: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(server.output / entry["subfolder"] / entry["filename"]), dtype=int)
