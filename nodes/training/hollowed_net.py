"""Hollowed Net: training without the network's deep middle."""

import logging
from contextlib import AbstractContextManager
from typing import Any

from comfy_api.latest import io

from ...models.hollowed_net.network import HollowedNetwork
from ...models.units import in_mib
from ...trainers.config import STORAGES, HollowedNetConfig, TrainingOptions
from ...trainers.data.dataset import Subject
from ...trainers.dreambooth.memory_estimate import MemoryEstimate, estimate_memory
from ...trainers.session import TrainingSession
from ..bridge.model.block_spans import RemovedBlocks, choose_removed_blocks
from ..bridge.model.offload import has_offload_device
from ..bridge.progress import Progress
from ..bridge.training_session import training_session
from ..common import sockets

DEFAULT = HollowedNetConfig()
MOST = 0.85
"""Share without which little is learnt: of drawn people, a network without 78 % of its numbers still learns almost what
plain LoRA does, and one without 91 % a fraction of it (the rows ``hollow_*`` of ``benchmarks/quality.py``)."""


class HollowedNet(io.ComfyNode):
    """Model and fraction -> hollow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothHollowedNet",
            display_name="Hollowed Net",
            category=f"{sockets.CATEGORY}/training",
            description="Takes the deep middle of the network out while it trains: training needs little more memory "
            "than sampling. Connect it to Train Adapter; the adapter is for the whole model, and the model stays "
            "whole. Note that a patent application covers the method (US 2025/0356190 A1).",
            inputs=[
                io.Model.Input("model", tooltip="The model to be trained."),
                io.Float.Input(
                    "fraction",
                    default=DEFAULT.fraction,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the model's parameters to take out; the nearest possible cut is taken. More "
                    "saves memory, and leaves less that can learn.",
                ),
                io.Int.Input(
                    "samples",
                    default=DEFAULT.samples,
                    min=1,
                    max=1000000,
                    tooltip="How many noisy pictures the whole model runs on beforehand; training goes through them "
                    "again and again. steps x batch_size shows each once. Not used with storage none.",
                ),
                io.Combo.Input(
                    "storage",
                    options=list(STORAGES),
                    default=DEFAULT.storage,
                    tooltip="Where that is kept: ram; disk, where it survives a cancel; none: nothing is recorded, "
                    "and each step runs the deep part without gradients, with fresh noise.",
                ),
                sockets.Subject.Input(
                    "subject", optional=True, tooltip="With it the report says what memory a step takes on it."
                ),
            ],
            outputs=[
                sockets.Hollow.Output(display_name="hollow", tooltip="For Train Adapter."),
                io.String.Output(display_name="report", tooltip="What is taken out, and what it saves."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, fraction: float, samples: int, storage: str, subject: Subject | None = None
    ) -> io.NodeOutput:
        hollowing = HollowedNetConfig(fraction, samples, storage)
        cut = choose_removed_blocks(model.model.diffusion_model, fraction)
        stows = storage != "none" and has_offload_device(model)
        sizes = _measured(model, cut, subject, stows) if subject else None
        return io.NodeOutput(hollowing, report(model, hollowing, cut, sizes))


def _measured(model: Any, cut: RemovedBlocks, subject: Subject, stows: bool) -> MemoryEstimate:
    """Return the memory that a step takes on the model as it is loaded."""

    def open_session(
        options: TrainingOptions, hollow: HollowedNetwork | None
    ) -> AbstractContextManager[TrainingSession]:
        return training_session(model, options, subject, batch_size=1, hollow=hollow)

    return estimate_memory(open_session, subject, cut.hollow, int(model.model_size()), stows, Progress(2))


def report(model: Any, hollowing: HollowedNetConfig, cut: RemovedBlocks, sizes: MemoryEstimate | None) -> str:
    """What a user wants to know before training."""
    parameters = cut.hollow.parameters()
    saved = sum(parameter.nbytes for parameter in parameters)
    lines = [
        f"taken out: {cut.name}",
        f"{cut.fraction:.0%} of the diffusion model (asked for: {hollowing.fraction:.0%}): "
        f"{sum(parameter.numel() for parameter in parameters):,} parameters, {in_mib(saved)}",
        *warnings(cut),
    ]
    if sizes is None:
        return "\n".join([*lines, "connect subject for the memory that a step takes"])
    recorded = hollowing.samples * sizes.sample
    named = "would be recorded" if hollowing.storage == "none" else "recorded"
    lines += [
        f"{named}: {in_mib(sizes.sample)} per sample, {in_mib(recorded)} for {hollowing.samples} samples; prior "
        "preservation takes as much again",
        *([] if sizes.attention else ["no attention layer is left: the method's targets have to be others"]),
        "",
        "a step on one sample          memory   / sampling",
        *(f"{name:<24}{in_mib(size):>12}{size / sizes.sampling:>10.2f} x" for name, size in sizes.rows()),
        "",
        advice(hollowing, recorded, saved, has_offload_device(model), model.load_device),
    ]
    return "\n".join(lines)


def warnings(cut: RemovedBlocks) -> list[str]:
    """A line where so much is taken out that what is left learns little."""
    if cut.fraction <= MOST:
        return []
    warning = f"without {cut.fraction:.0%} of the network little of a subject is learnt; give a fraction of 0.8 or less"
    logging.warning("HyperBooth: Hollowed Net: %s", warning)
    return [f"warning: {warning}"]


def advice(hollowing: HollowedNetConfig, recorded: int, saved: int, stows: bool, device: Any) -> str:
    """Whether to record; ``stows``: recording lets the weights taken out leave the training ``device``."""
    if recorded > 4 * saved:
        better = f"recording takes {recorded / saved:.0f} times what it frees: storage none is the better choice here"
    else:
        frees = "the deep part's weights and its time" if stows else "the deep part's time"
        better = f"recording frees {frees} in every step: better than none for long runs"
    if not stows:
        where = "in main memory" if device.type in ("cpu", "mps") else f"on {device}"
        better += f". What trains here is {where}, where the deep part's weights stay"
    return f"storage is {hollowing.storage}; {better}"
