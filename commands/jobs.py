"""Jobs of the commands: the nodes' own functions, distributed over the processes that torchrun started."""

import argparse
import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from ..models.files.adapter_file import load_adapter
from ..models.hypernetwork.checkpoint import load_predictor
from ..models.subject_bank.bank import Bank
from ..nodes.bridge.folders import adapter_path, hypernetwork_path, require_output_prefix
from ..nodes.bridge.headless import is_debug, load_checkpoint, load_vision, log_progress
from ..nodes.bridge.subject_banks import bank_path
from ..nodes.extension import HyperBooth
from ..nodes.hypernetwork.predict import SaveHyperNetwork
from ..nodes.hypernetwork.subject_bank import BuildBank, build
from ..nodes.hypernetwork.train import WARMUP, TrainHyperNetwork, options_for, report, train, training_config
from ..nodes.methods import MethodLiDB
from ..nodes.training.train_adapter import RESUME
from ..nodes.training.training_options import Options
from ..trainers.config import TrainingOptions
from ..trainers.engine.distributed import SINGLE, ProcessGroup, process_group
from ..trainers.engine.divergence import Diverged
from ..trainers.subject_bank.config import BankConfig
from .arguments import NodeArguments

logger = logging.getLogger("hyperbooth")

CommandArguments = dict[str, Any]


@record  # for torchrun's report of the process that failed
def run(job: str, arguments: Sequence[str], program: str) -> None:
    """Run a job under inference mode, as nodes run.

    An error in the inputs ends a single process with one line, or with ``-- --verbose DEBUG`` with a traceback.
    torchrun reports errors of its processes itself.

    Args:
        job: a key of :data:`JOBS`.
        arguments: the command line without ComfyUI's arguments.
        program: the command's file name, for messages.
    """
    asyncio.run(HyperBooth().on_load())  # registers the pack's folders, as a server does once
    make_parser, work = JOBS[job]
    parser = make_parser(program)
    parsed = vars(parser.parse_args(arguments))
    with process_group() as processes, torch.inference_mode():
        logging.basicConfig()  # the root's handler, if ComfyUI has logged nothing yet
        logging.getLogger().setLevel(logging.INFO if processes.is_main else logging.WARNING)
        log_progress(logger.info if processes.is_main else None)
        try:
            text = work(parsed, processes)
        except (ValueError, OSError, Diverged, torch.OutOfMemoryError) as error:
            if processes is not SINGLE or is_debug():
                raise
            parser.exit(2, f"{program}: error: {error}\n")
        if processes.is_main:
            print(text, flush=True)


def _parser(program: str, job: str, *inputs: NodeArguments) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program, description=job, allow_abbrev=False, epilog="After -- come ComfyUI's own "
                                     "arguments: -- --input-directory DIR --output-directory DIR --cpu")  # fmt: skip
    parser.add_argument("--comfyui", help="folder of ComfyUI (default: the one that this pack lies in)")
    parser.add_argument("--checkpoint", required=True, help="a file, or the name of one in models/checkpoints")
    for node_arguments in inputs:
        node_arguments.add_to(parser)
    return parser


BUILD, METHOD, OPTIONS = NodeArguments(BuildBank), NodeArguments(MethodLiDB), NodeArguments(Options, sparse=True)
TRAIN, SAVE = NodeArguments(TrainHyperNetwork), NodeArguments(SaveHyperNetwork, without={"precision"})
TRAIN_OPTIONS = NodeArguments(Options, sparse=True, shown={"warmup_steps": WARMUP})


def _bank_parser(program: str) -> argparse.ArgumentParser:
    parser = _parser(program, "Build a bank of subjects.", BUILD, METHOD, OPTIONS)
    parser.add_argument("--start-from", help="an adapter's name, as Load Adapter lists it (default: none)")
    return parser


def _build_bank(parsed: CommandArguments, processes: ProcessGroup) -> str:
    (method,) = MethodLiDB.execute(**METHOD.of(parsed)).result
    options, given = TrainingOptions(**OPTIONS.of(parsed)), BUILD.of(parsed)
    start = load_adapter(adapter_path(parsed["start_from"])) if parsed["start_from"] else None
    config = BankConfig(
        method=method, prompt=given["prompt"], steps=given["steps"], seed=given["seed"],
        resolution=given["resolution"], options=options, start_from=start, shared_input=given["shared_input"],
        captions=given["captions"],
    )  # fmt: skip
    model, clip, vae = load_checkpoint(parsed["checkpoint"])
    return build(
        config, given["folder"], given["bank_name"], subjects_per_batch=given["subjects_per_batch"], model=model,
        clip=clip, vae=vae, processes=processes,
    )[1]  # fmt: skip


def _network_parser(program: str) -> argparse.ArgumentParser:
    parser = _parser(program, "Train a hypernetwork on a bank and save it.", TRAIN, TRAIN_OPTIONS, SAVE)
    parser.add_argument("--clip-vision", required=True, help="a file, or the name of one in models/clip_vision")
    parser.add_argument("--bank-name", required=True, help="a bank's name, as Load Subject Bank lists it")
    parser.add_argument("--start-from", help="a hypernetwork's name, as Load HyperNetwork lists it (default: none)")
    return parser


def _train_hypernetwork(parsed: CommandArguments, processes: ProcessGroup) -> str:
    given, saving = TRAIN.of(parsed), SAVE.of(parsed)
    require_output_prefix(saving["filename_prefix"])
    resume = given.pop("resume") == RESUME[0] or _is_restarted(processes)
    options = replace(options_for(given["steps"]), **TRAIN_OPTIONS.of(parsed))
    start = load_predictor(hypernetwork_path(parsed["start_from"])) if parsed["start_from"] else None
    config = training_config(Bank.open(bank_path(parsed["bank_name"])), **given, options=options, start_from=start)
    model, clip, _ = load_checkpoint(parsed["checkpoint"])
    result = train(config, model, clip, load_vision(parsed["clip_vision"]), resume=resume, processes=processes)
    if result is None:
        return ""
    (path,) = SaveHyperNetwork.execute(result.predictor, **saving).result
    return f"{report(config, result)}\nsaved {path}"


def _is_restarted(processes: ProcessGroup) -> bool:
    """Return whether torchrun has restarted the processes after one died, which overrides 'start over'.

    Each machine counts the restarts caused by its own processes only, so the counts are gathered.
    """
    return max(processes.all_gather_object(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))) > 0


JOBS: dict[str, tuple[Callable[[str], argparse.ArgumentParser], Callable[[CommandArguments, ProcessGroup], str]]] = {
    "build_bank": (_bank_parser, _build_bank),
    "train_hypernetwork": (_network_parser, _train_hypernetwork),
}
