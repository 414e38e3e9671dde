"""Node that reads images, captions and masks from a folder."""

from typing import Any

from comfy_api.latest import io

from ...trainers.data.image_folder import folder_state, read_folder
from ...trainers.data.image_reader import ON_BROKEN, ReadOptions
from ...trainers.engine.run_hash import run_hash
from ..bridge.folders import input_folder, widget_value
from ..common import sockets
from ..common.node import Node

READING = ReadOptions()


class ImagesFromFolder(Node):
    """Read the images of a folder, with their captions and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothImagesFromFolder",
            display_name="Photographs from Folder",
            category=f"{sockets.CATEGORY}/data",
            description="Reads images, their captions and masks from a folder in ComfyUI's input folder: upright, in "
            "natural order; damaged and duplicate files are left out and reported.",
            inputs=[
                io.String.Input(
                    "folder", default="", tooltip="Name of a folder in ComfyUI's input folder, such as 'my dog'."
                ),
                io.Boolean.Input(
                    "captions",
                    optional=True,
                    default=READING.captions,
                    tooltip="Read 'name.txt' next to 'name.jpg' as its caption. Without one, Subject's prompt is used.",
                ),
                io.Boolean.Input(
                    "masks",
                    optional=True,
                    default=READING.masks,
                    tooltip="Read 'name.mask.png' next to the image as its mask (white is learned), or else its alpha "
                    "channel. Without either, the whole image counts.",
                ),
                io.Combo.Input(
                    "on_broken",
                    options=list(ON_BROKEN),
                    optional=True,
                    default=READING.on_broken,
                    tooltip="skip: leave damaged files out and name them in the report; stop: end with an error.",
                ),
                io.Int.Input(
                    "longest_side",
                    optional=True,
                    default=READING.longest_side,
                    min=0,
                    max=16384,
                    step=64,
                    tooltip="Larger images are scaled down to this while reading, which saves memory; 0: never. Twice "
                    "the training resolution loses nothing.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True, tooltip="For Subject's images."),
                io.String.Output(
                    display_name="captions", is_output_list=True, tooltip="One caption per image, empty without one."
                ),
                io.Mask.Output(
                    display_name="masks", is_output_list=True, tooltip="One mask per image, white without one."
                ),
                io.String.Output(display_name="report", tooltip="Which files were used, which were left out, and why."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_: Any) -> Any:
        """Return a digest of the files' names, sizes and times: a changed folder is read again.

        ComfyUI writes it into the metadata of the images that it saves, so it names no file.
        """
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
