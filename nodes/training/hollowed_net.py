"""Node of Hollowed Net: training without the network's deep blocks."""

import logging
from contextlib import AbstractContextManager
from typing import Any

from comfy_api.latest import io

from ...models.hollowed_net.network import HollowedNetwork
from ...models.units import in_mib
from ...trainers.config import TrainingOptions
from ...trainers.data.dataset import Subject
from ...trainers.dreambooth.memory_estimate import MemoryEstimate, estimate_memory
from ...trainers.hollowed_net.config import STORAGES, HollowedNetConfig
from ...trainers.session import TrainingSession
from ..bridge.model.block_spans import RemovedBlocks, choose_removed_blocks
from ..bridge.model.offload import has_offload_device
from ..bridge.progress import Progress
from ..bridge.training_session import training_session
from ..common import sockets
from ..common.node import Node

logger = logging.getLogger("hyperbooth")

DEFAULT = HollowedNetConfig()
MAX_FRACTION = 0.85
"""Removed share above which little is learned: on drawn people, a network without 78 % of its parameters still learns
almost as much as plain LoRA, one without 91 % a fraction of it (rows ``hollow_*`` of ``benchmarks/quality.py``)."""


class HollowedNet(Node):
    """Choose the blocks that are removed from the network while it trains."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothHollowedNet",
            display_name="Hollowed Net",
            category=f"{sockets.CATEGORY}/training",
            description="Removes the deep blocks of the network while it trains: training needs little more memory "
            "than sampling. Connect it to Train Adapter; the adapter is for the whole model, which stays unchanged. "
            "Note that a patent application covers the method (US 2025/0356190 A1).",
            inputs=[
                io.Model.Input("model", tooltip="The model to be trained."),
                io.Float.Input(
                    "fraction",
                    default=DEFAULT.fraction,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the model's parameters to remove; the nearest possible set of blocks is chosen. "
                    "More saves memory, and leaves fewer layers to train.",
                ),
                io.Int.Input(
                    "samples",
                    default=DEFAULT.samples,
                    min=1,
                    max=1000000,
                    tooltip="Number of noisy images whose activations the whole model records before training, which "
                    "repeats them. steps x batch_size shows each once. Not used with storage none.",
                ),
                io.Combo.Input(
                    "storage",
                    options=list(STORAGES),
                    default=DEFAULT.storage,
                    tooltip="Where the activations are cached: ram; disk, where they survive a cancel; none: no cache, "
                    "each step runs the removed blocks without gradients, with fresh noise.",
                ),
                sockets.Subject.Input(
                    "subject",
                    optional=True,
                    tooltip="If connected, the report gives the memory of a training step on it.",
                ),
            ],
            outputs=[
                sockets.Hollow.Output(display_name="hollow", tooltip="For Train Adapter."),
                io.String.Output(display_name="report", tooltip="The removed blocks, and the memory that this saves."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, fraction: float, samples: int, storage: str, subject: Subject | None = None
    ) -> io.NodeOutput:
        config = HollowedNetConfig(fraction=fraction, samples=samples, storage=storage)
        removed = choose_removed_blocks(model.model.diffusion_model, fraction)
        offloads = storage != "none" and has_offload_device(model)
        sizes = _measured(model, removed, subject, offloads) if subject else None
        return io.NodeOutput(config, report(model, config, removed, sizes))


def _measured(model: Any, removed: RemovedBlocks, subject: Subject, offloads: bool) -> MemoryEstimate:
    """Measure the memory of a training step on the model as it is loaded."""

    def open_session(
        options: TrainingOptions, hollow: HollowedNetwork | None
    ) -> AbstractContextManager[TrainingSession]:
        return training_session(model, options, subject, batch_size=1, hollow=hollow)

    return estimate_memory(
        open_session,
        subject,
        removed.hollow,
        weights=int(model.model_size()),
        offloads=offloads,
        on_progress=Progress(2),
    )


def report(model: Any, config: HollowedNetConfig, removed: RemovedBlocks, sizes: MemoryEstimate | None) -> str:
    """Describe the removed blocks, what removing them saves, and the memory of a training step.

    Args:
        model: the MODEL.
        config: what was asked for.
        removed: the chosen blocks.
        sizes: memory measured on a subject, or None.
    """
    parameters = removed.hollow.parameters()
    saved = sum(parameter.nbytes for parameter in parameters)
    lines = [
        f"removed blocks: {removed.name}",
        f"{removed.fraction:.0%} of the diffusion model (asked for: {config.fraction:.0%}): "
        f"{sum(parameter.numel() for parameter in parameters):,} parameters, {in_mib(saved)}",
        *warnings(removed),
    ]
    if sizes is None:
        return "\n".join([*lines, "connect subject for the memory of a training step"])
    recorded = config.samples * sizes.sample
    named = "would be recorded" if config.storage == "none" else "recorded"
    lines += [
        f"{named}: {in_mib(sizes.sample)} per sample, {in_mib(recorded)} for {config.samples} samples; prior "
        "preservation doubles this",
        *([] if sizes.attention else ["no attention layer remains: choose other targets in the method"]),
        "",
        "a step on one sample          memory   / sampling",
        *(f"{name:<24}{in_mib(size):>12}{size / sizes.sampling:>10.2f} x" for name, size in sizes.rows()),
        "",
        advice(config, recorded=recorded, saved=saved, offloads=has_offload_device(model), device=model.load_device),
    ]
    return "\n".join(lines)


def warnings(removed: RemovedBlocks) -> list[str]:
    """Return a warning, also logged, if so much is removed that little can be learned."""
    if removed.fraction <= MAX_FRACTION:
        return []
    warning = (
        f"without {removed.fraction:.0%} of the network little of a subject is learned; give a fraction of 0.8 or less"
    )
    logger.warning("Hollowed Net: %s", warning)
    return [f"warning: {warning}"]


def advice(config: HollowedNetConfig, *, recorded: int, saved: int, offloads: bool, device: Any) -> str:
    """Advise whether to cache activations.

    Args:
        config: the storage that was chosen.
        recorded: bytes of the cached activations.
        saved: bytes of the removed weights.
        offloads: whether the removed weights can leave the training device while activations are cached.
        device: the training device.
    """
    if recorded > 4 * saved:
        better = f"recording takes {recorded / saved:.0f} times what it frees: storage none is better here"
    else:
        frees = "the removed blocks' weights and time" if offloads else "the removed blocks' time"
        better = f"recording frees {frees} in every step: better than none for long runs"
    if not offloads:
        where = "in main memory" if device.type in ("cpu", "mps") else f"on {device}"
        better += f". Training runs {where}, where the removed blocks' weights stay"
    return f"storage is {config.storage}; {better}"
