"""Training in the graph."""

from typing import Any

from comfy_api.latest import io

from ..models.adapter_set import AdapterSet
from ..trainers.loop import TrainState
from ..trainers.options import Method, TrainingOptions
from ..trainers.personalize import Run, personalize
from ..trainers.subject import Subject
from ..trainers.watch import Watch
from . import sockets
from .bridge.progress import Progress
from .bridge.session import workbench


class Train(io.ComfyNode):
    """Model and subject -> adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothTrain",
            display_name="Train Adapter",
            category=f"{sockets.CATEGORY}/training",
            description="DreamBooth training on the model as it is loaded: no second copy, and the model itself "
            "stays as it is. Shows the loss curve and samples while it runs; ComfyUI's cancel button stops it.",
            inputs=[
                io.Model.Input("model", tooltip="The model to personalise, as loaded."),
                sockets.Subject.Input("subject", tooltip="What to learn."),
                sockets.Method.Input("method", tooltip="How to parametrise the change: LoRA, for example."),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=1000000,
                    tooltip="Optimizer steps: about 100 per photograph, 400 to 1000 in all for most subjects.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="Pictures per step."),
                sockets.seed("Same seed and inputs, same adapter. Kept fixed: queueing again does not train again."),
                io.Clip.Input("clip", optional=True, tooltip="Only needed if the method trains the text encoder."),
                sockets.Options.Input("options", optional=True, tooltip="Optimizer, loss, memory, previews."),
                sockets.Adapter.Input(
                    "start_from",
                    optional=True,
                    tooltip="An adapter to train further; the method must have the same rank, alpha and targets.",
                ),
            ],
            outputs=[
                sockets.Adapter.Output(display_name="adapter", tooltip="For Apply Adapter and Save Adapter."),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step, for Plot Loss Graph."),
                io.String.Output(display_name="report", tooltip="What was trained, on what, and how it went."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, subject: Subject, method: Method, steps: int, batch_size: int, seed: int, clip: Any = None,
        options: TrainingOptions | None = None, start_from: AdapterSet | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        if method.text_encoder and clip is None:
            raise ValueError("clip is not connected, but the method trains the text encoder; connect it, or switch "
                             "text_encoder off in the method")  # fmt: skip
        options = options or TrainingOptions()
        run = Run(subject, method, options, steps, batch_size, seed, start_from)
        show = Progress(steps)
        with workbench(model, options, subject, batch_size, clip if method.text_encoder else None) as bench:
            adapter, state = personalize(run, bench, lambda sample: Watch(steps, show, sample, options.preview_every))
        return io.NodeOutput(adapter, {"loss": state.losses}, report(run, adapter, state))


def report(run: Run, adapter: AdapterSet, state: TrainState) -> str:
    """What a user wants to know afterwards, in plain words."""
    link = adapter.chain[-1]
    tail = state.losses[-max(1, len(state.losses) // 10) :]
    lines = [
        f"{link.describe()}, {link.describe_size()}",
        f"{state.step} steps of {run.batch_size} on {len(run.subject.examples)} images, "
        f"{len(run.subject.class_examples)} class images",
        f"loss {sum(tail) / len(tail):.4f} (mean of the last {len(tail)} steps)",
        *([f"{state.skipped} steps skipped: out of float16's range"] if state.skipped else []),
        *run.subject.notes,
    ]
    return "\n".join(lines)
