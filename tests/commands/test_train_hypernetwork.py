"""Test that a hypernetwork trained by two processes, one of which is killed, equals the one that the node trains."""

import re
import sys
from pathlib import Path
from typing import Any

import comfy.clip_vision
import pytest
import torch
from helpers.banks import write_bank
from helpers.torchrun import CommandRunner
from helpers.training import relative
from hyperbooth.models.files.safetensors_io import write_tensors
from hyperbooth.models.hypernetwork.checkpoint import load_predictor
from hyperbooth.models.hypernetwork.network import HyperNetwork
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.nodes.bridge.images.clip_vision import encoder_ref
from hyperbooth.trainers.config import TrainingOptions
from hyperbooth.trainers.engine.run_hash import run_hash
from hyperbooth.trainers.hypernetwork.feature_cache import FeatureCache
from torch import Tensor

STEPS = 8
ARGUMENTS = [
    "--bank-name", "people", "--steps", f"{STEPS}", "--batch-size", "5", "--refinements", "2", "--width", "32",
    "--learning-rate", "0.001", "--checkpoint-every", "1", "--validation", "4", "--max-grad-norm",
    "0.05", "--filename-prefix", "hyperbooth/faces",
]  # fmt: skip


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the smallest encoder that the stock loader takes, a ViT-L of constant weights; it is run on one image."""
    config = Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json")
    with torch.device("meta"):
        shapes = comfy.clip_vision.ClipVisionModel(str(config)).model.state_dict()
    path = tmp_path_factory.mktemp("vision") / "vitl.safetensors"
    write_tensors({name: torch.full(shape.shape, 0.01, dtype=torch.half) for name, shape in shapes.items()}, path)
    return path


@pytest.fixture
def runner(checkpoint: Path, loaded: Any, vision: Path, output_folder: Path) -> CommandRunner:
    """Return a runner whose output folder holds a bank of 20 people with cached features of its images."""
    bank = write_bank(output_folder / "hyperbooth_banks" / "people", loaded, range(20))
    name = run_hash(encoder_ref(comfy.clip_vision.load(str(vision))))
    draw = torch.Generator().manual_seed(0)
    encode = lambda images: torch.randn(len(images), 257, 1024, generator=draw)  # noqa: E731
    FeatureCache(bank, name, encode, on_progress=lambda done, total: None)
    return CommandRunner(checkpoint, output_folder, output_folder)


def by_the_node(node: Any, loaded: Any, vision: Path, bank: Bank) -> HyperNetwork:
    """Train the network of :data:`ARGUMENTS` by the node, in this process."""
    model, clip, _ = loaded
    options = TrainingOptions(warmup_steps=1, max_grad_norm=0.05, validation=4)
    network, _, report = node(
        "TrainHyperNetwork", model=model, clip=clip, clip_vision=comfy.clip_vision.load(str(vision)), bank=bank,
        steps=STEPS, learning_rate=1e-3, batch_size=5, refinements=2, weight_loss=1.0, denoising_loss=1.0, seed=0,
        resume="start over", options=options, width=32,
    )  # fmt: skip
    assert f"{STEPS} steps of 5 on 18 people" in report
    return network.network


def parameters_of(network: HyperNetwork) -> dict[str, Tensor]:
    """Return the parameters without the biases of attention's keys.

    The softmax does not depend on those biases: their gradient is rounding error, which AdamW normalizes too.
    """
    parameters = network.state_dict()
    for name in [name for name in parameters if name.endswith("in_proj_bias")]:
        query, _, value = parameters[name].chunk(3)
        parameters[name] = torch.cat([query, value])
    return parameters


def states(runner: CommandRunner) -> list[Path]:
    return list((runner.outputs / "hyperbooth_states").glob("*.safetensors"))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_two_processes_train_the_network_of_the_node_though_one_is_killed(
    node: Any, loaded: Any, runner: CommandRunner, vision: Path
) -> None:
    """A batch of 5 is split into 2 and 3, and a process is killed once the first state is on disk."""
    arguments = [*ARGUMENTS, "--clip-vision", str(vision)]
    output = runner.run("train_hypernetwork", arguments, 2, lambda: len(states(runner)) > 0)
    resumed = re.search(r"resumed at step (\d+)", output)
    assert resumed is not None and 0 < int(resumed[1]) < STEPS
    for path in states(runner):
        path.unlink()
    alone = by_the_node(node, loaded, vision, Bank.open(runner.outputs / "hyperbooth_banks" / "people"))
    saved = load_predictor(runner.outputs / "hyperbooth" / "faces_00001_.safetensors")
    ours, theirs = parameters_of(saved.network), parameters_of(alone)
    assert saved.metadata["taken_at_step"] > 0, "an initialization alone proves nothing about the steps"
    assert [name for name in theirs if theirs[name].any() and relative(ours[name], theirs[name]) > 1e-4] == []
