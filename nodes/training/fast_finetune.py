"""Rank-relaxed fast fine-tuning in the graph (HyperDreamBooth, arXiv 2307.06949, section 4.3)."""

from typing import Any

from comfy_api.latest import io

from ...models.adapters import LoRAConfig
from ...models.adapters.stack import AdapterStack
from ...trainers.config import Method, TrainingOptions
from ...trainers.data.dataset import Subject
from ...trainers.dreambooth.config import DreamBoothConfig
from ..bridge.adapters.patching import has_text_layers, require_layers_present, warn_if_other_base
from ..common import method_inputs, sockets
from .train_adapter import changes_prompts, report, train

STEPS, RANK = 40, 4
"""Forty steps are the paper's. The relaxed rank it does not say; ours holds four times what a prediction does."""
LEARNING_RATE = 1e-3
"""Our choice: ten times LoRA's usual rate, for a tenth of its steps. The text encoder's layers get half of it."""


class FastFinetune(io.ComfyNode):
    """An adapter and a few steps of a LoRA on top of it -> one chain."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothFastFinetune",
            display_name="Fast Fine-tune (rank-relaxed)",
            category=f"{sockets.CATEGORY}/training",
            description="A few steps on top of an adapter, such as a predicted one: it stays as it is, and a new LoRA "
            "of higher rank on the same layers learns what it lacks. The result is both as one chain.",
            inputs=[
                io.Model.Input("model", tooltip="The model to personalise, without the adapter on it."),
                sockets.Subject.Input("subject", tooltip="What to learn; one picture is enough."),
                sockets.Adapter.Input("adapter", tooltip="What to start on: from Predict Adapter, or any other."),
                method_inputs.rank(
                    RANK, "Directions per layer of the new LoRA. More than the adapter's own, which may be 1."
                ),
                io.Int.Input(
                    "steps", default=STEPS, min=1, max=1000000, tooltip="Optimizer steps: 40 in the paper."
                ),
                method_inputs.learning_rate(LEARNING_RATE, "Of the new LoRA; lower for many steps."),
                sockets.seed("Same seed and inputs, same adapter. Kept fixed: queueing again does not train again."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Needed if the adapter holds text-encoder layers or a word."
                ),
                sockets.Options.Input("options", optional=True, tooltip="Optimizer, loss, memory, previews."),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=1024, optional=True,
                    tooltip="Pictures per step; of a single picture, several noise levels at once.",
                ),
            ],
            outputs=[
                sockets.Adapter.Output(display_name="adapter", tooltip="The given adapter, then the new LoRA."),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step, for Plot Loss Graph."),
                io.String.Output(display_name="report", tooltip="What was trained, on what, and how it went."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        subject: Subject,
        adapter: AdapterStack,
        rank: int,
        steps: int,
        learning_rate: float,
        seed: int,
        clip: Any = None,
        options: TrainingOptions | None = None,
        batch_size: int = 1,
    ) -> io.NodeOutput:
        require_fine_tunable(model, clip, adapter)
        text = has_text_layers(adapter)
        method = Method(
            "lora", LoRAConfig(rank, float(rank)), learning_rate=learning_rate, text_encoder=text,
            text_encoder_lr=learning_rate / 2,
        )  # fmt: skip
        run = DreamBoothConfig(
            subject, method, options or TrainingOptions(), steps, batch_size, seed, on_top_of=adapter
        )
        result = train(run, model, clip if changes_prompts(adapter) else None, resume=True)
        below = ", ".join(part.describe() for part in (*adapter.adapters, *adapter.embeddings))
        lines = f"{report(run, result)}\non top of {below}"
        return io.NodeOutput(result.adapter, {"loss": result.history.losses}, lines)


def require_fine_tunable(model: Any, clip: Any, adapter: AdapterStack) -> None:
    """The adapter is for this MODEL (and CLIP), and there is something to train on.

    Raises:
        ValueError: it has no layers, does not fit, or needs a clip.
    """
    if not adapter.adapters:
        raise ValueError(
            "adapter holds words only, no layers to train on; use Apply Adapter on model and clip, Train Adapter on "
            "those, and join both with Combine Adapters"
        )
    if clip is None and changes_prompts(adapter):
        raise ValueError("clip is not connected, but adapter holds text-encoder layers or a word; connect it")
    require_layers_present(model, clip, adapter)
    warn_if_other_base(model, clip, adapter)
