"""A bank built by two processes, one of them killed on the way, is the bank that the node builds."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from helpers.banks import images_of
from helpers.torchrun import CommandRunner
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.trainers.config import Method
from PIL import Image
from safetensors.torch import load_file, save, save_file

PEOPLE = 9
ARGUMENTS = [
    "--folder", "people", "--steps", "4", "--subjects-per-batch", "2", "--resolution", "64", "--a", "16", "--b", "8",
    "--no-text-encoder", "--learning-rate", "0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a folder of people, the last of whom has no picture that can be read."""
    root = tmp_path_factory.mktemp("inputs")
    for person in range(PEOPLE):
        folder = root / "people" / f"person {person}"
        folder.mkdir(parents=True)
        Image.fromarray(images_of(person, size=64)[0].numpy()).save(folder / "a.png")
    (folder / "a.png").write_bytes(b"no picture")
    return root


@pytest.fixture
def many(checkpoint: Path, inputs: Path, output_folder: Path) -> CommandRunner:
    return CommandRunner(checkpoint, inputs, output_folder)


@pytest.fixture(scope="module")
def alone(node: Any, loaded: Any, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """What those arguments ask for, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "input_directory", str(inputs))
        patch.setattr(folder_paths, "output_directory", str(tmp_path_factory.mktemp("alone")))
        return by_the_node(node, loaded)


def by_the_node(node: Any, loaded: Any) -> Bank:
    method = Method("lidb", LiDBConfig(1, 16, 8), "attention", 0.01, False, 5e-4, "attention and feed-forward")
    model, clip, vae = loaded
    return node(
        "BuildBank", model=model, clip=clip, vae=vae, folder="people", method=method, prompt="a photo of sks face",
        steps=4, subjects_per_batch=2, seed=0, resolution=64,
    )[0]  # fmt: skip


def shards(bank: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bank.glob("*.safetensors")}


def test_two_processes_build_the_bank_of_the_node_bit_for_bit(alone: Bank, many: CommandRunner) -> None:
    said = many.run("build_bank", ARGUMENTS, processes=2)
    assert "8 subjects with 8 pictures in 4 shards" in said and "8 of them new" in said
    assert said.count("left out: person 8: ") == 1
    both = Bank.open(many.outputs / "hyperbooth_banks" / "people")
    assert shards(both.folder) == shards(alone.folder) and both.manifest.difference(alone.manifest) is None


def test_a_wrong_input_is_one_line(many: CommandRunner) -> None:
    said = many.run("build_bank", [*ARGUMENTS, "--a", "0"], processes=1, status=2)
    assert said.splitlines()[-1] == "build_bank.py: error: --a is 0; give one from 1 to 65536"
    said = many.run("build_bank", [*ARGUMENTS, "--folder", "nobody"], processes=1, status=2)
    assert said.splitlines()[-1].startswith("build_bank.py: error: ") and "nobody" in said.splitlines()[-1]
    assert "Traceback" not in said
    said = many.run("build_bank", [*ARGUMENTS, "--folder", "nobody"], processes=1, status=1, own=["--verbose", "DEBUG"])
    assert "Traceback" in said and "nobody" in said.splitlines()[-1]


def test_a_file_that_is_no_checkpoint_is_one_line(many: CommandRunner) -> None:
    for name, wrong in (("lora", save({"lora_up.weight": torch.zeros(2, 2)})), ("text", b"no checkpoint")):
        (path := many.outputs / f"{name}.safetensors").write_bytes(wrong)
        said = replace(many, checkpoint=path).run("build_bank", ARGUMENTS, processes=1, status=2)
        assert said.splitlines()[-1].startswith(f"build_bank.py: error: --checkpoint '{path}' cannot be read: ")
        assert "Traceback" not in said


def test_a_checkpoint_without_a_text_encoder_is_one_line(many: CommandRunner) -> None:
    parts = {name: value for name, value in load_file(many.checkpoint).items() if "cond_stage_model" not in name}
    save_file(parts, path := many.outputs / "model.safetensors")
    said = replace(many, checkpoint=path).run("build_bank", ARGUMENTS, processes=1, status=2)
    assert said.splitlines()[-1].startswith(f"build_bank.py: error: --checkpoint '{path}' holds no text encoder; ")


def test_a_run_that_breaks_is_one_line(many: CommandRunner) -> None:
    parts = load_file(many.checkpoint)
    parts["model.diffusion_model.out.2.bias"].fill_(torch.nan)
    save_file(parts, path := many.outputs / "broken.safetensors")
    said = replace(many, checkpoint=path).run("build_bank", ARGUMENTS, processes=1, status=2)
    assert said.splitlines()[-1].startswith("build_bank.py: error: the loss on fixed noise is nan at step 0. ")
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_a_killed_process_changes_nothing_about_the_bank(alone: Bank, many: CommandRunner) -> None:
    folder = many.outputs / "hyperbooth_banks" / "people"
    said = many.run("build_bank", ARGUMENTS, processes=2, kill=lambda: len(shards(folder)) > 0)
    assert "8 subjects with 8 pictures in 4 shards" in said and "8 of them new" not in said
    assert shards(folder) == shards(alone.folder)
