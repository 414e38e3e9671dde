"""Test that command-line arguments have the names, defaults and limits of the nodes' inputs."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from hyperbooth.commands.arguments import NodeArguments
from hyperbooth.commands.jobs import JOBS
from hyperbooth.nodes.hypernetwork.subject_bank import BuildBank
from hyperbooth.nodes.hypernetwork.train import WARMUP, TrainHyperNetwork
from hyperbooth.nodes.methods import MethodLiDB
from hyperbooth.nodes.training.training_options import Options
from hyperbooth.trainers.config import TrainingOptions
from hyperbooth.trainers.engine.distributed import SINGLE


def parsed(inputs: NodeArguments, *arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    inputs.add_to(parser)
    return inputs.of(vars(parser.parse_args(arguments)))


@pytest.mark.parametrize("node", [MethodLiDB, TrainHyperNetwork, Options])
def test_defaults_are_the_nodes(node: Any) -> None:
    values = parsed(NodeArguments(node))
    for spec in node.GET_SCHEMA().inputs:
        if spec.get_io_type() in ("INT", "FLOAT", "BOOLEAN", "COMBO"):
            shown = spec.default if spec.default is not None else spec.options[0]
            assert values.pop(spec.id) == shown, spec.id
    assert values == {}


def test_arguments_without_default_are_required() -> None:
    given = ("--folder", "people", "--subjects-per-batch", "4", "--shared-input", "--captions")
    values = parsed(NodeArguments(BuildBank), *given)
    assert (values["folder"], values["subjects_per_batch"]) == ("people", 4)
    assert values["shared_input"] and values["captions"]
    assert parsed(NodeArguments(TrainHyperNetwork), "--input-pictures", "4")["input_pictures"] == 4
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parsed(NodeArguments(BuildBank))


def test_sparse_arguments_hold_only_what_is_given() -> None:
    assert parsed(NodeArguments(Options, sparse=True), "--ema-decay", "0.9") == {"ema_decay": 0.9}
    assert TrainingOptions(**parsed(NodeArguments(Options))) == TrainingOptions()


def test_help_shows_the_commands_own_default() -> None:
    text = JOBS["train_hypernetwork"][0]("train").format_help()
    assert f"default: {WARMUP}" in " ".join(text.split())


def test_an_invalid_file_name_is_refused_before_anything_is_loaded(output_folder: Path) -> None:
    make_parser, work = JOBS["train_hypernetwork"]
    needed = ["--checkpoint", "none", "--bank-name", "none", "--clip-vision", "none"]
    parsed = vars(make_parser("train").parse_args([*needed, "--filename-prefix", "../faces"]))
    with pytest.raises(ValueError, match=r"filename_prefix '\.\./faces'"):
        work(parsed, SINGLE)


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--subjects-per-batch.* 0.* 1 .* 4096"):
        parsed(NodeArguments(BuildBank), "--folder", "people", "--subjects-per-batch", "0")
