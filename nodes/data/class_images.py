"""Node that samples class images for prior preservation."""

from typing import Any

from comfy_api.latest import io

from ...trainers.checks import check_number
from ...trainers.data.resize import bucket_size
from ...trainers.engine.rng import generator_for
from ..bridge.images.sampling import SAMPLERS, SCHEDULERS, sample_latents
from ..bridge.images.vae import decode_latents, latent_cell
from ..bridge.progress import Progress
from ..bridge.text.conditioning import encode_prompt
from ..common import sockets
from ..common.node import Node


class ClassImages(Node):
    """Sample images of the class from the unchanged model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothClassImages",
            display_name="Class Images",
            category=f"{sockets.CATEGORY}/data",
            description="Samples images of the subject's class from the unchanged model (DreamBooth's prior "
            "preservation).",
            inputs=[
                io.Model.Input("model", tooltip="The model as loaded, before any adapter."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.String.Input(
                    "class_prompt", default="a photo of a dog", tooltip="The class, without the subject's name."
                ),
                io.Int.Input("count", default=100, min=1, max=10000, tooltip="How many; the paper takes about 1000."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps of each image."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance."),
                io.Combo.Input(
                    "sampler_name",
                    options=SAMPLERS,
                    default="euler_ancestral",
                    tooltip="The paper samples them with an ancestral sampler.",
                ),
                io.Combo.Input(
                    "scheduler", options=SCHEDULERS, default="normal", tooltip="Noise schedule of the sampler."
                ),
                sockets.seed("Same seed, same images."),
                io.Int.Input("resolution", default=512, min=8, max=4096, step=8, tooltip="Side in pixels."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="For the Subject node's class_images."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, class_prompt: str, count: int, steps: int, cfg: float,
        sampler_name: str, scheduler: str, seed: int, resolution: int,
    ) -> io.NodeOutput:  # fmt: skip
        check_number("count", count, 1)
        cell = latent_cell(vae)
        side = bucket_size(1, 1, resolution, cell, False)[0] // cell
        positive, negative = encode_prompt(clip, class_prompt), encode_prompt(clip, "")
        total = count * (steps + 1)
        progress, done, latents = Progress(total), 0, []

        def on_step() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        for index in range(count):
            draw = generator_for(seed, index).initial_seed()
            latents.append(
                sample_latents(
                    model, positive, negative, size=(1, side, side), seed=draw, steps=steps, cfg=cfg,
                    sampler_name=sampler_name, scheduler=scheduler, on_step=on_step,
                )
            )  # fmt: skip
        images = []
        for latent in latents:
            images.append(decode_latents(vae, latent))
            on_step()
        return io.NodeOutput(images)
