"""Node of rank-relaxed fast fine-tuning (HyperDreamBooth, arXiv 2307.06949, section 4.3)."""

from typing import Any

from comfy_api.latest import io

from ...models.adapters import LoRAConfig
from ...models.adapters.stack import AdapterStack
from ...trainers.config import Method, TrainingOptions
from ...trainers.data.dataset import Subject
from ...trainers.dreambooth.config import DreamBoothConfig
from ..bridge.adapters.patching import has_text_layers, require_layers_present, warn_if_other_base
from ..common import method_inputs, sockets
from ..common.node import Node
from .train_adapter import changes_prompts, report, train

STEPS, RANK = 40, 4
"""Forty steps as in the paper, which does not give the relaxed rank; ours is four times that of a prediction."""
LEARNING_RATE = 1e-3
"""Our choice: ten times LoRA's usual learning rate, for a tenth of its steps; half of it for the text encoder."""


class FastFinetune(Node):
    """Train a LoRA for a few steps on top of an adapter, as one adapter stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothFastFinetune",
            display_name="Fast Fine-tune (rank-relaxed)",
            category=f"{sockets.CATEGORY}/training",
            description="Trains for a few steps on top of an adapter, such as a predicted one: that adapter is frozen, "
            "and a new LoRA of higher rank is trained on the same layers. The result is the stack of both.",
            inputs=[
                io.Model.Input("model", tooltip="The model to personalize, without the adapter on it."),
                sockets.Subject.Input("subject", tooltip="The subject to learn; one image is enough."),
                sockets.Adapter.Input("adapter", tooltip="What to train on top of: from Predict Adapter or elsewhere."),
                method_inputs.rank(
                    RANK, "Rank of the new LoRA, higher than the adapter's own, which may be 1."
                ),
                io.Int.Input(
                    "steps", default=STEPS, min=1, max=1000000, tooltip="Optimizer steps: 40 in the paper."
                ),
                method_inputs.learning_rate(LEARNING_RATE, "Learning rate of the new LoRA; lower for many steps."),
                sockets.seed("Same seed and inputs, same adapter. Kept fixed: queueing again does not train again."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Needed if the adapter holds text-encoder layers or a learned "
                    "embedding."
                ),
                sockets.Options.Input("options", optional=True, tooltip="Optimizer, loss, memory, previews."),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=1024, optional=True,
                    tooltip="Images per step; of a single image, several noise levels at once.",
                ),
            ],
            outputs=[
                sockets.Adapter.Output(display_name="adapter", tooltip="The given adapter, then the new LoRA."),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step, for Plot Loss Graph."),
                io.String.Output(display_name="report", tooltip="Adapter, dataset, steps and losses."),
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
            family="lora", config=LoRAConfig(rank=rank, alpha=float(rank)), learning_rate=learning_rate,
            text_encoder=text, text_encoder_lr=learning_rate / 2,
        )  # fmt: skip
        run = DreamBoothConfig(
            subject=subject, method=method, options=options or TrainingOptions(), steps=steps, batch_size=batch_size,
            seed=seed, on_top_of=adapter,
        )  # fmt: skip
        result = train(run, model, clip if changes_prompts(adapter) else None, resume=True)
        below = ", ".join(part.describe() for part in (*adapter.adapters, *adapter.embeddings))
        lines = f"{report(run, result)}\non top of {below}"
        return io.NodeOutput(result.adapter, {"loss": result.history.losses}, lines)


def require_fine_tunable(model: Any, clip: Any, adapter: AdapterStack) -> None:
    """Require that a LoRA can be trained on top of the adapter; warn if it was made for another base.

    Args:
        model: the MODEL to train on.
        clip: its CLIP, or None.
        adapter: the adapter stack to train on top of.

    Raises:
        ValueError: it has no layers, does not fit the model, or needs a clip.
    """
    if not adapter.adapters:
        raise ValueError(
            "adapter holds learned embeddings only, no layers to train on; use Apply Adapter on model and clip, Train "
            "Adapter on those, and join both with Combine Adapters"
        )
    if clip is None and changes_prompts(adapter):
        raise ValueError("clip is not connected, but adapter holds text-encoder layers or embeddings; connect it")
    require_layers_present(model, clip, adapter)
    warn_if_other_base(model, clip, adapter)
