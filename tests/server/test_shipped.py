"""The other shipped workflows on a real server, as they are but for sizes."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from devkit.graphs import changed, find, saved, small_job
from devkit.server import Server


def test_full_dreambooth_saves_a_checkpoint_that_loads(server: Server, checkpoint: Path) -> None:
    graph = small_job(checkpoint.name, 3, "hyperbooth_dreambooth_full")
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    report = outcome.outputs[find(graph, "PreviewAny")]["text"][0]
    assert "full (every number)" in report and "validation loss on the picture held out" in report
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
