"""Banks of subjects: built from a folder of folders, and opened again."""

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...models.adapters.stack import AdapterStack
from ...models.subject_bank.bank import Bank
from ...models.subject_bank.shards import folder_state as state_of_bank
from ...trainers.config import Method, TrainingOptions
from ...trainers.data.image_folder import folder_state
from ...trainers.engine.checks import check_number
from ...trainers.engine.distributed import SINGLE, ProcessGroup
from ...trainers.engine.run_hash import run_hash
from ...trainers.subject_bank.build import build_bank, subject_names
from ...trainers.subject_bank.config import BankConfig
from ..bridge.folders import input_folder, widget_value
from ..bridge.progress import Progress
from ..bridge.subject_banks import (
    accept_folder_state,
    bank_builder,
    bank_names,
    bank_path,
    default_bank_name,
    folder_version,
    new_bank_path,
)
from ..common import sockets

CATEGORY = f"{sockets.CATEGORY}/hypernetwork"


class BuildBank(io.ComfyNode):
    """Folder of folders -> bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothBuildBank",
            display_name="Build Subject Bank",
            category=CATEGORY,
            description="Trains a LiDB for every sub-folder of a folder, many subjects in one batch, and keeps them as "
            "a bank: what a hypernetwork learns from. Stopped, it goes on with what is missing; sub-folders that "
            "come later extend the bank. Saved below output/hyperbooth_banks.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the subjects are for. It stays as it is."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Name of a folder in ComfyUI's input folder that holds one sub-folder for each subject, "
                    "with its pictures inside; one picture is enough.",
                ),
                sockets.Method.Input("method", tooltip="LiDB, with its settings."),
                io.String.Input(
                    "prompt",
                    default="a photo of sks face",
                    tooltip="What every picture (with captions: without one) shows, with one rare word as the name of "
                    "all: 'a photo of sks face'. Predicted subjects are called up by the same words.",
                ),
                io.Int.Input(
                    "steps",
                    default=100,
                    min=1,
                    max=1000000,
                    tooltip="Optimizer steps of each subject. Enough to leave the base well behind (see the report's "
                    "losses); from one picture, more soon learn the picture instead of the subject.",
                ),
                io.Int.Input(
                    "subjects_per_batch",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Subjects that train at once, and that a file of the bank holds; what is finished is kept "
                    "file by file. More is faster until the device is busy. The result stays the same, up to "
                    "rounding; in float16 a step that overflows is left out for all in the batch.",
                ),
                sockets.seed("Of the start that all subjects share, and of the noise, the same for all."),
                *_optional_inputs(),
            ],
            outputs=[
                sockets.Bank.Output(display_name="bank", tooltip="For Train HyperNetwork."),
                io.String.Output(display_name="report", tooltip="How many, how well, and what was left out and why."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, bank_name: str | None = "", **_: Any) -> Any:
        """A digest of names, sizes and times of the files in the sub-folders: the bank is extended if any changed; and
        built again if it is no more what was built. ComfyUI writes it into the pictures that it saves."""
        source = input_folder(widget_value("folder", folder))
        pictures = [(name, folder_state(source / name)) for name in subject_names(source)]
        return run_hash(pictures), folder_version(place_of(widget_value("bank_name", bank_name), source))

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, folder: str, method: Method, prompt: str, steps: int,
        subjects_per_batch: int, seed: int, bank_name: str = "", resolution: int = 512,
        options: TrainingOptions | None = None, start_from: AdapterStack | None = None, shared_input: bool = False,
        captions: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        check_number("subjects_per_batch", subjects_per_batch, 1)
        options = options or TrainingOptions()
        recipe = BankConfig(method, prompt, steps, seed, resolution, options, start_from, shared_input, captions)
        bank, text = build(recipe, folder, bank_name, subjects_per_batch, model, clip, vae)
        return io.NodeOutput(bank, text, ui={"text": (text,)})


def _optional_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "bank_name",
            default="",
            optional=True,
            tooltip="Name of the bank; empty takes the folder's, 'celebs_train' for 'celebs/train'. A bank of that "
            "name is extended.",
        ),
        io.Int.Input(
            "resolution",
            default=512,
            min=8,
            max=4096,
            step=8,
            optional=True,
            tooltip="Side of the square that pictures are cropped and scaled to, in pixels: 512 for SD1.5.",
        ),
        sockets.Options.Input(
            "options", optional=True, tooltip="Optimizer, loss, noise, memory. A bank has no prior preservation."
        ),
        sockets.Adapter.Input(
            "start_from",
            optional=True,
            tooltip="A LiDB that every subject starts from, such as one trained on many people at once. Made by the "
            "same method.",
        ),
        io.Boolean.Input(
            "shared_input",
            default=False,
            optional=True,
            tooltip="Train only the factor on the layers' output side; the other one stays as all start. A subject is "
            "then linear in its numbers.",
        ),
        io.Boolean.Input(
            "captions",
            default=False,
            optional=True,
            tooltip="Train each picture on the text beside it (name.txt for name.jpg), and on prompt where there is "
            "none. Texts name the subject by the same rare word, and the scene: 'a photo of sks face in the snow'. "
            "Needs a method without the text encoder.",
        ),
    ]


def build(
    recipe: BankConfig,
    folder: str,
    bank_name: str,
    together: int,
    model: Any,
    clip: Any,
    vae: Any,
    processes: ProcessGroup = SINGLE,
) -> tuple[Bank, str]:
    """The bank of that folder on the loaded model, and a report."""
    source, method = input_folder(folder), recipe.method
    place = place_of(bank_name, source)
    tools = bank_builder(model, clip, vae, recipe.options, method.text_encoder)
    made = build_bank(recipe, source, place, together, tools, _show(), processes)
    accept_folder_state(place)
    return made


def place_of(bank_name: str, source: Path) -> Path:
    """Where the bank of the pictures in ``source`` is built."""
    return new_bank_path(bank_name.strip() or default_bank_name(source))


def _show() -> Any:
    """Progress with the number of steps known only at the first call."""
    bars: list[Progress] = []

    def show(done: int, total: int, picture: Any) -> None:
        if not bars:
            bars.append(Progress(total))
        bars[0](done, total, picture)

    return show


class LoadBank(io.ComfyNode):
    """Bank on disk -> bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothLoadBank",
            display_name="Load Subject Bank",
            category=CATEGORY,
            description="Opens a bank that Build Subject Bank made. Numbers and pictures are read when they are used.",
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
        """A bank that has changed is opened again."""
        return run_hash(state_of_bank(bank_path(widget_value("bank_name", bank_name))))
