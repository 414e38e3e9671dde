"""Test that a bank built by two processes equals the node's, also if one is killed, and that errors are one line."""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from helpers.banks import images_of
from helpers.torchrun import CommandRunner
from hyperbooth.commands.jobs import run
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
    """Return an input folder with a folder of people; the last person's only image is unreadable."""
    root = tmp_path_factory.mktemp("inputs")
    for person in range(PEOPLE):
        folder = root / "people" / f"person {person}"
        folder.mkdir(parents=True)
        Image.fromarray(images_of(person, size=64)[0].numpy()).save(folder / "a.png")
    (folder / "a.png").write_bytes(b"not an image")
    return root


@pytest.fixture
def runner(checkpoint: Path, inputs: Path, output_folder: Path) -> CommandRunner:
    return CommandRunner(checkpoint, inputs, output_folder)


@pytest.fixture(scope="module")
def alone(node: Any, loaded: Any, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """Build the bank of :data:`ARGUMENTS` by the node, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "input_directory", str(inputs))
        patch.setattr(folder_paths, "output_directory", str(tmp_path_factory.mktemp("alone")))
        return by_the_node(node, loaded)


def by_the_node(node: Any, loaded: Any) -> Bank:
    method = Method(
        family="lidb",
        config=LiDBConfig(rank=1, a=16, b=8),
        targets="attention",
        learning_rate=0.01,
        text_encoder=False,
        text_encoder_lr=5e-4,
        text_targets="attention and feed-forward",
    )
    model, clip, vae = loaded
    return node(
        "BuildBank", model=model, clip=clip, vae=vae, folder="people", method=method, prompt="a photo of sks face",
        steps=4, subjects_per_batch=2, seed=0, resolution=64,
    )[0]  # fmt: skip


def shards(bank: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bank.glob("*.safetensors")}


def test_two_processes_build_the_bank_of_the_node_bit_for_bit(alone: Bank, runner: CommandRunner) -> None:
    output = runner.run("build_bank", ARGUMENTS, processes=2)
    assert re.search(r"8 subjects with 8 \w+ in 4 shards", output) and "8 of them new" in output
    assert output.count("left out: person 8: ") == 1
    assert "INFO:hyperbooth:" in output, "the pack's logger shows its lines"
    both = Bank.open(runner.outputs / "hyperbooth_banks" / "people")
    assert shards(both.folder) == shards(alone.folder) and both.manifest.difference(alone.manifest) is None


def test_an_invalid_input_is_one_line(runner: CommandRunner) -> None:
    missing = [*ARGUMENTS, "--folder", "missing"]
    output = runner.run("build_bank", missing, processes=1, status=2)
    assert output.splitlines()[-1].startswith("build_bank.py: error: ") and "missing" in output.splitlines()[-1]
    assert "Traceback" not in output
    output = runner.run("build_bank", missing, processes=1, status=1, comfyui_arguments=["--verbose", "DEBUG"])
    assert "Traceback" in output and "missing" in output.splitlines()[-1]


class InThisProcess:
    """Run the command's job on ComfyUI as it is loaded here: starting one takes seven seconds.

    Args:
        runner: holds the checkpoint and the output folder.
        capsys: captures the job's output.
    """

    def __init__(self, runner: CommandRunner, capsys: pytest.CaptureFixture[str]):
        self.runner, self.capsys = runner, capsys

    def error(self, checkpoint: Path, *more: str) -> str:
        """Return the line with which the job ends."""
        with pytest.raises(SystemExit) as ended:
            run("build_bank", ["--checkpoint", str(checkpoint), *ARGUMENTS, *more], "build_bank.py")
        assert ended.value.code == 2
        (line,) = [line for line in self.capsys.readouterr().err.splitlines() if "error" in line]
        return line


@pytest.fixture
def job(
    runner: CommandRunner, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[InThisProcess]:
    monkeypatch.setattr(folder_paths, "input_directory", str(runner.inputs))
    level = logging.getLogger().level
    yield InThisProcess(runner, capsys)
    logging.getLogger().setLevel(level)


def test_an_argument_out_of_range_is_named_with_its_range(job: InThisProcess, checkpoint: Path) -> None:
    assert re.fullmatch(r"build_bank\.py: error: --a .*0.* 1 .* 65536", job.error(checkpoint, "--a", "0"))


def without_text_encoder(checkpoint: Path) -> bytes:
    return save({name: value for name, value in load_file(checkpoint).items() if "cond_stage_model" not in name})


INVALID: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a LoRA": (lambda _: save({"lora_up.weight": torch.zeros(2, 2)}), ""),
    "text": (lambda _: b"no checkpoint", ""),
    "no text encoder": (without_text_encoder, "text encoder"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_a_file_that_is_not_a_whole_checkpoint_is_named(job: InThisProcess, checkpoint: Path, kind: str) -> None:
    make, message = INVALID[kind]
    (path := job.runner.outputs / "invalid.safetensors").write_bytes(make(checkpoint))
    line = job.error(path)
    assert line.startswith(f"build_bank.py: error: --checkpoint '{path}' ") and message in line


def test_a_diverged_run_is_one_line(job: InThisProcess, checkpoint: Path) -> None:
    parts = load_file(checkpoint)
    parts["model.diffusion_model.out.2.bias"].fill_(torch.nan)
    save_file(parts, path := job.runner.outputs / "broken.safetensors")
    assert re.match(r"build_bank\.py: error: .*nan at step 0", job.error(path))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_a_killed_process_changes_nothing_about_the_bank(alone: Bank, runner: CommandRunner) -> None:
    folder = runner.outputs / "hyperbooth_banks" / "people"
    output = runner.run("build_bank", ARGUMENTS, processes=2, kill=lambda: len(shards(folder)) > 0)
    assert re.search(r"8 subjects with 8 \w+ in 4 shards", output) and "8 of them new" not in output
    assert shards(folder) == shards(alone.folder)
