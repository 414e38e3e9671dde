"""Fast fine-tuning on a real server: the main job, then a few steps on top of its adapter."""

from pathlib import Path

from safetensors.torch import load_file

from devkit.graphs import changed, find, saved, small_job
from devkit.server import Server


def test_a_few_steps_on_top_of_an_adapter(server: Server, checkpoint: Path) -> None:
    graph = small_job(checkpoint.name, steps=2)
    train = find(graph, "HyperBoothTrain")
    before = graph[train]["inputs"]
    graph["finetune"] = {
        "class_type": "HyperBoothFastFinetune",
        "inputs": {
            "model": before["model"], "subject": before["subject"], "adapter": [train, 0], "rank": 3, "steps": 3,
            "learning_rate": 1e-3, "seed": 0,
        },
    }  # fmt: skip
    for node in ("HyperBoothSave", "HyperBoothApply"):
        graph[find(graph, node)]["inputs"]["adapter"] = ["finetune", 0]
    outcome = server.run(graph)
    assert outcome.status == "success", outcome.message
    assert outcome.progress["finetune"][-1] == 3
    names = load_file(saved(server, graph, outcome)).keys()
    assert {name[:2] for name in names} == {"1/", "2/"}, "both links are in one file"
    again = server.run(changed(graph, "HyperBoothFastFinetune", seed=1))
    assert again.status == "success" and train not in again.executed, "the adapter below is not trained again"
