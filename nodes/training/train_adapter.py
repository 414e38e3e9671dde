"""Node that trains an adapter on a subject."""

from typing import Any

from comfy_api.latest import io

from ...models.adapters.stack import AdapterStack
from ...models.adapters.targets import TEXT_PREFIX
from ...models.files.adapter_file import save_adapter
from ...trainers.checks import check_choice
from ...trainers.config import Method, TrainingOptions
from ...trainers.data.dataset import Subject
from ...trainers.dreambooth.config import DreamBoothConfig
from ...trainers.dreambooth.initial_adapter import trained_part
from ...trainers.dreambooth.trainer import DreamBoothResult, train_dreambooth
from ...trainers.engine.checkpoints import CheckpointStore
from ...trainers.engine.state import History
from ...trainers.hollowed_net.config import HollowedNetConfig
from ...trainers.reporting.live_view import LiveView
from ..bridge.adapters.patching import require_own_names, warn_if_other_base
from ..bridge.folders import output_file, output_name, state_folder
from ..bridge.model.block_spans import choose_removed_blocks
from ..bridge.progress import Progress, is_image_shown
from ..bridge.training_session import training_session
from ..common import sockets
from ..common.node import Node

RESUME = ("continue", "start over")


class Train(Node):
    """Train an adapter for a model on a subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothTrain",
            display_name="Train Adapter",
            category=f"{sockets.CATEGORY}/training",
            description="Trains an adapter by DreamBooth on the model as it is loaded: without a copy, and the model "
            "is unchanged. Shows the loss curve and samples while it runs. Cancelled or killed, it resumes from its "
            "last checkpoint when it is queued again.",
            inputs=[
                io.Model.Input("model", tooltip="The model to personalize, as loaded."),
                sockets.Subject.Input("subject", tooltip="The subject to learn."),
                sockets.Method.Input("method", tooltip="The training method: LoRA, for example."),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=1000000,
                    tooltip="Optimizer steps: about 100 per image, 400 to 1000 in all for most subjects.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="Images per step."),
                sockets.seed("Same seed and inputs, same adapter. Kept fixed: queueing again does not train again."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Only needed if the method trains the text encoder or an embedding, or start_from holds "
                    "such.",
                ),
                sockets.Options.Input("options", optional=True, tooltip="Optimizer, loss, memory, previews."),
                sockets.Adapter.Input(
                    "start_from",
                    optional=True,
                    tooltip="An adapter to train further; the method must be of its family, with the same settings.",
                ),
                io.Combo.Input(
                    "resume",
                    options=list(RESUME),
                    default=RESUME[0],
                    optional=True,
                    tooltip="continue: a run that was cancelled or killed resumes from its last checkpoint, if all "
                    "inputs are the same. start over: from step 0.",
                ),
                sockets.Hollow.Input(
                    "hollow",
                    optional=True,
                    tooltip="From Hollowed Net: trains without the network's deep blocks, in little more memory than "
                    "sampling. The adapter is for the whole model.",
                ),
            ],
            outputs=[
                sockets.Adapter.Output(display_name="adapter", tooltip="For Apply Adapter and Save Adapter."),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step, for Plot Loss Graph."),
                io.String.Output(display_name="report", tooltip="Adapter, dataset, steps and losses."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, subject: Subject, method: Method, steps: int, batch_size: int, seed: int, clip: Any = None,
        options: TrainingOptions | None = None, start_from: AdapterStack | None = None, resume: str = RESUME[0],
        hollow: HollowedNetConfig | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        check_choice("resume", resume, RESUME)
        encodes = method.encodes_prompts or changes_prompts(start_from)
        if encodes and clip is None:
            raise ValueError(clip_needed(method))
        if start_from is not None:
            require_own_names(model, clip, start_from)
            warn_if_other_base(model, clip, start_from)
        run = DreamBoothConfig(
            subject=subject, method=method, options=options or TrainingOptions(), steps=steps, batch_size=batch_size,
            seed=seed, start_from=start_from, hollow=hollow,
        )  # fmt: skip
        result = train(run, model, clip if encodes else None, resume == RESUME[0])
        return io.NodeOutput(result.adapter, {"loss": result.history.losses}, report(run, result))


def changes_prompts(adapter: AdapterStack | None) -> bool:
    """Whether prompts have to be encoded again under ``adapter``: it has text-encoder layers or embeddings."""
    return adapter is not None and (
        bool(adapter.embeddings)
        or any(name.startswith(TEXT_PREFIX) for part in adapter.adapters for name in part.targets)
    )


def clip_needed(method: Method) -> str:
    """Return the message for a clip that is needed but not connected."""
    if not method.encodes_prompts:
        return "clip is not connected, but start_from holds text-encoder layers or embeddings; connect it"
    what = "an embedding" if method.textual_inversion else "the text encoder"
    instead = "" if method.textual_inversion else ", or switch text_encoder off in the method"
    return f"clip is not connected, but the method trains {what}; connect it{instead}"


def train(run: DreamBoothConfig, model: Any, clip: Any, resume: bool) -> DreamBoothResult:
    """Train on the loaded model, with progress and checkpoints on disk.

    Args:
        run: the training run.
        model: the MODEL.
        clip: its CLIP if prompts have to be encoded, else None.
        resume: whether to resume from a checkpoint of the same run.
    """
    options, progress = run.options, Progress(run.steps)
    hollow = choose_removed_blocks(model.model.diffusion_model, run.hollow.fraction).hollow if run.hollow else None
    with training_session(model, options, run.subject, batch_size=run.batch_size, clip=clip, hollow=hollow) as session:
        states = CheckpointStore(state_folder(), run.key(session.model.model_hash))
        if not resume:
            states.forget()
        return train_dreambooth(
            run,
            session,
            live_view=lambda sample: LiveView(
                total=run.steps,
                on_progress=progress,
                sample=sample,
                preview_every=options.preview_every,
                draws=is_image_shown(),
            ),
            checkpoints=states,
            save_rescued=save_rescued,
            save_kept=lambda adapter, step: _saved(adapter, f"loras/hyperbooth_steps/step_{step:06}"),
            on_record=progress,
        )


def save_rescued(adapter: AdapterStack) -> str:
    """Save the adapter of a run that failed where Load Adapter finds it; return the file's name."""
    try:
        return _saved(adapter, "loras/hyperbooth_rescued")
    except (OSError, ValueError):  # that folder cannot be written; the one above it may
        return _saved(adapter, "hyperbooth_rescued")


def _saved(adapter: AdapterStack, prefix: str) -> str:
    with output_file(prefix, ".safetensors") as path:
        save_adapter(adapter, path)
    return output_name(path)


def report(run: DreamBoothConfig, result: DreamBoothResult) -> str:
    """Describe the trained adapter, the dataset and the losses."""
    part, history = trained_part(result.adapter, run.method), result.history
    tail = history.losses[-max(1, len(history.losses) // 10) :]
    lines = [
        f"{part.describe()}, {part.describe_size()}",
        f"{history.step} steps of {run.batch_size} on {len(run.training.examples)} images, "
        f"{len(run.subject.class_examples)} class images",
        f"loss {sum(tail) / len(tail):.4f} (mean of the last {len(tail)} steps)",
        *_validation_lines(run, history),
        *([f"resumed at step {result.resumed}"] if result.resumed else []),
        *([f"{history.skipped} steps skipped: gradients out of float16's range"] if history.skipped else []),
        *result.notes,
        *run.notes,
        *run.subject.notes,
    ]
    return "\n".join(lines)


def _validation_lines(run: DreamBoothConfig, history: History) -> list[str]:
    if history.best is None:
        return []
    on = "the held-out image" if len(run.training.examples) < len(run.subject.examples) else "the training images"
    (first_step, first), (step, best) = history.validation[0], history.best
    return [f"validation loss on {on}: {first:.4f} at step {first_step}, best {best:.4f} at step {step}"]
