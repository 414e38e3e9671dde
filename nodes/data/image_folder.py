"""Photographs from a folder."""

from typing import Any

from comfy_api.latest import io

from ...trainers.data.image_folder import folder_state, read_folder
from ...trainers.data.image_reader import ON_BROKEN, ReadOptions
from ...trainers.engine.run_hash import run_hash
from ..bridge.folders import input_folder, widget_value
from ..common import sockets

READING = ReadOptions()


class ImagesFromFolder(io.ComfyNode):
    """Folder -> pictures, their texts and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothImagesFromFolder",
            display_name="Photographs from Folder",
            category=f"{sockets.CATEGORY}/data",
            description="Reads photographs, their texts and masks from a folder in ComfyUI's input folder: upright, "
            "in natural order, damaged and doubled ones left out and named.",
            inputs=[
                io.String.Input(
                    "folder", default="", tooltip="Name of a folder in ComfyUI's input folder, such as 'my dog'."
                ),
                io.Boolean.Input(
                    "captions",
                    optional=True,
                    default=READING.captions,
                    tooltip="Read 'name.txt' beside 'name.jpg' as its text. Without one, Subject's prompt is taken.",
                ),
                io.Boolean.Input(
                    "masks",
                    optional=True,
                    default=READING.masks,
                    tooltip="Read 'name.mask.png' beside the picture as its mask (white is learnt), or else take what "
                    "is opaque in a picture with transparency. Without either, everything counts.",
                ),
                io.Combo.Input(
                    "on_broken",
                    options=list(ON_BROKEN),
                    optional=True,
                    default=READING.on_broken,
                    tooltip="skip: leave damaged files out, and say so in the report; stop: end with an error.",
                ),
                io.Int.Input(
                    "longest_side",
                    optional=True,
                    default=READING.longest_side,
                    min=0,
                    max=16384,
                    step=64,
                    tooltip="Larger photographs are scaled down to this while reading, which saves memory; 0 leaves "
                    "them. Twice the training resolution loses nothing.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True, tooltip="For Subject's images."),
                io.String.Output(
                    display_name="captions", is_output_list=True, tooltip="One text per image, empty without one."
                ),
                io.Mask.Output(
                    display_name="masks", is_output_list=True, tooltip="One mask per image, white without one."
                ),
                io.String.Output(display_name="report", tooltip="What was used, and what was left out and why."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_: Any) -> Any:
        """A digest of names, sizes and times of the files: changed ones are read again. ComfyUI writes it into the
        pictures that it saves."""
        return run_hash(folder_state(input_folder(widget_value("folder", folder))))

    @classmethod
    def execute(
        cls, folder: str, captions: bool = READING.captions, masks: bool = READING.masks,
        on_broken: str = READING.on_broken, longest_side: int = READING.longest_side,
    ) -> io.NodeOutput:  # fmt: skip
        options = ReadOptions(captions=captions, masks=masks, on_broken=on_broken, longest_side=longest_side)
        found, lines = read_folder(input_folder(folder), options)
        return io.NodeOutput(
            [image.pixels[None] for image in found],
            [image.caption for image in found],
            [image.mask_or_ones[None] for image in found],
            "\n".join(lines),
        )
