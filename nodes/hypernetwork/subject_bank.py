"""Nodes that build and open subject banks."""

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...models.adapters.stack import AdapterStack
from ...models.subject_bank.bank import Bank
from ...models.subject_bank.shards import shard_state
from ...trainers.checks import check_number
from ...trainers.config import Method, TrainingOptions
from ...trainers.data.image_folder import folder_state
from ...trainers.engine.distributed import SINGLE, ProcessGroup
from ...trainers.engine.run_hash import run_hash
from ...trainers.subject_bank.build import BankBuilder
from ...trainers.subject_bank.config import BankConfig
from ...trainers.subject_bank.folders import subject_names
from ..bridge.folders import input_folder, widget_value
from ..bridge.progress import Progress, is_image_shown
from ..bridge.subject_banks import (
    accept_folder_state,
    bank_backend,
    bank_names,
    bank_path,
    default_bank_name,
    folder_version,
    new_bank_path,
)
from ..common import sockets
from ..common.node import Node

CATEGORY = f"{sockets.CATEGORY}/hypernetwork"


class BuildBank(Node):
    """Build a subject bank from a folder with one sub-folder per subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothBuildBank",
            display_name="Build Subject Bank",
            category=CATEGORY,
            description="Trains a LiDB for every sub-folder of a folder, many subjects in one batch, and saves them as "
            "a subject bank, the dataset of a hypernetwork. Interrupted, it resumes with the missing subjects; new "
            "sub-folders extend the bank. Saved below output/hyperbooth_banks.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model of the subjects. It is not changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Name of a folder in ComfyUI's input folder with one sub-folder per subject, which holds "
                    "its images; one image is enough.",
                ),
                sockets.Method.Input("method", tooltip="LiDB, with its settings."),
                io.String.Input(
                    "prompt",
                    default="a photo of sks face",
                    tooltip="Prompt of every image (with captions: of those without one), with one rare word as the "
                    "identifier of all subjects: 'a photo of sks face'. Predicted adapters answer to the same words.",
                ),
                io.Int.Input(
                    "steps",
                    default=100,
                    min=1,
                    max=1000000,
                    tooltip="Optimizer steps of each subject: enough that the loss is well below the base model's (see "
                    "the report); on a single image, more soon overfit to the image.",
                ),
                io.Int.Input(
                    "subjects_per_batch",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Subjects trained in one batch, and saved in one shard of the bank. More is faster until "
                    "the device is busy. The result does not depend on it, up to rounding; in float16 a step that "
                    "overflows is skipped for the whole batch.",
                ),
                sockets.seed("Seed of the shared initialization and of the noise, which is the same for all subjects."),
                *_optional_inputs(),
            ],
            outputs=[
                sockets.Bank.Output(display_name="bank", tooltip="For Train HyperNetwork."),
                io.String.Output(
                    display_name="report", tooltip="Number of subjects, losses, and which images were left out and why."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, bank_name: str | None = "", **_: Any) -> Any:
        """Return a digest of the names, sizes and times of the files in the sub-folders, and the bank's version.

        The bank is extended if a file changed, and built again if the bank itself did. ComfyUI writes the digest into
        the metadata of the images that it saves.
        """
        source = input_folder(widget_value("folder", folder))
        files = [(name, folder_state(source / name)) for name in subject_names(source)]
        return run_hash(files), folder_version(bank_folder(widget_value("bank_name", bank_name), source))

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, folder: str, method: Method, prompt: str, steps: int,
        subjects_per_batch: int, seed: int, bank_name: str = "", resolution: int = 512,
        options: TrainingOptions | None = None, start_from: AdapterStack | None = None, shared_input: bool = False,
        captions: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        check_number("subjects_per_batch", subjects_per_batch, 1)
        options = options or TrainingOptions()
        config = BankConfig(
            method=method, prompt=prompt, steps=steps, seed=seed, resolution=resolution, options=options,
            start_from=start_from, shared_input=shared_input, captions=captions,
        )  # fmt: skip
        bank, text = build(
            config, folder, bank_name, subjects_per_batch=subjects_per_batch, model=model, clip=clip, vae=vae
        )
        return io.NodeOutput(bank, text, ui={"text": (text,)})


def _optional_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "bank_name",
            default="",
            optional=True,
            tooltip="Name of the bank; empty: the folder's, 'celebs_train' for 'celebs/train'. An existing bank of "
            "that name is extended.",
        ),
        io.Int.Input(
            "resolution",
            default=512,
            min=8,
            max=4096,
            step=8,
            optional=True,
            tooltip="Side of the square that images are cropped and resized to, in pixels: 512 for SD1.5.",
        ),
        sockets.Options.Input(
            "options", optional=True, tooltip="Optimizer, loss, noise, memory. A bank has no prior preservation."
        ),
        sockets.Adapter.Input(
            "start_from",
            optional=True,
            tooltip="A LiDB that initializes every subject, such as one trained on many people at once, by the same "
            "method.",
        ),
        io.Boolean.Input(
            "shared_input",
            default=False,
            optional=True,
            tooltip="Train only the up factor of each layer; all subjects share the down factor. A subject's change is "
            "then linear in its parameters.",
        ),
        io.Boolean.Input(
            "captions",
            default=False,
            optional=True,
            tooltip="Train each image on its caption (name.txt for name.jpg), and on prompt where there is none. "
            "Captions name the subject by the same rare word, and the scene: 'a photo of sks face in the snow'. "
            "Needs a method without the text encoder.",
        ),
    ]


def build(
    config: BankConfig, folder: str, bank_name: str, *, subjects_per_batch: int, model: Any, clip: Any, vae: Any,
    processes: ProcessGroup = SINGLE,
) -> tuple[Bank, str]:  # fmt: skip
    """Build or extend a bank on the loaded model.

    Args:
        config: how every subject is trained.
        folder: name of the folder of images, in ComfyUI's input folder.
        bank_name: of the bank; "" for the folder's.
        subjects_per_batch: subjects trained at once.
        model: the MODEL.
        clip: its CLIP.
        vae: its VAE.
        processes: the processes that build the bank together.

    Returns:
        The bank, and a report.
    """
    source, method = input_folder(folder), config.method
    path = bank_folder(bank_name, source)
    backend = bank_backend(model, clip, vae, config.options, method.text_encoder)
    builder = BankBuilder(
        config=config, source=source, folder=path, subjects_per_batch=subjects_per_batch, backend=backend,
        on_progress=_progress(), draws=is_image_shown(), processes=processes,
    )  # fmt: skip
    result = builder.build()
    accept_folder_state(path)
    return result


def bank_folder(bank_name: str, source: Path) -> Path:
    """Return the folder of the bank that is built from the images in ``source``."""
    return new_bank_path(bank_name.strip() or default_bank_name(source))


def _progress() -> Any:
    """Return a progress callback that takes the number of steps from its first call."""
    bars: list[Progress] = []

    def _update(done: int, total: int, preview: Any) -> None:
        if not bars:
            bars.append(Progress(total))
        bars[0](done, total, preview)

    return _update


class LoadBank(Node):
    """Open a subject bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothLoadBank",
            display_name="Load Subject Bank",
            category=CATEGORY,
            description="Opens a bank that Build Subject Bank made. Parameters and images are read when they are used.",
            inputs=[
                io.Combo.Input(
                    "bank_name",
                    options=bank_names(),
                    tooltip="A bank of output/hyperbooth_banks or models/hyperbooth_banks.",
                ),
            ],
            outputs=[sockets.Bank.Output(display_name="bank", tooltip="For Train HyperNetwork.")],
        )

    @classmethod
    def execute(cls, bank_name: str) -> io.NodeOutput:
        return io.NodeOutput(Bank.open(bank_path(bank_name)))

    @classmethod
    def fingerprint_inputs(cls, bank_name: str | None, **_: Any) -> Any:
        """Return a digest of the bank's files: a bank that changed is opened again."""
        return run_hash(shard_state(bank_path(widget_value("bank_name", bank_name))))
