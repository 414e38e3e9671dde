"""Node of full fine-tuning."""

from comfy_api.latest import io

from ...models.adapters import FullConfig
from ...trainers.config import Method
from ..common import method_inputs
from ..common.node import Node

METHOD = Method(
    family="full",
    config=FullConfig(),
    targets="all weights",
    learning_rate=5e-6,
    text_encoder=False,
    text_encoder_lr=5e-6,
)


class MethodDreamBooth(Node):
    """Choose full fine-tuning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodDreamBooth",
            display_name="DreamBooth (full)",
            category=method_inputs.CATEGORY,
            description="Trains all parameters of the chosen weights, as in the DreamBooth paper. Takes 16 bytes of "
            "memory per parameter with AdamW, 8 with adafactor; LoRA takes a hundredth. The result is an adapter of "
            "full differences; apply it and use Save Checkpoint for a checkpoint.",
            inputs=[
                method_inputs.targets(
                    METHOD.targets, "Which weights are trained: all (except biases and norms), or those of some layers."
                ),
                method_inputs.learning_rate(
                    METHOD.learning_rate, "Learning rate of the diffusion model. 5e-6 in the paper."
                ),
                *method_inputs.text_encoder(METHOD),
            ],
            outputs=[method_inputs.output()],
        )

    @classmethod
    def execute(
        cls, targets: str, learning_rate: float, text_encoder: bool, text_encoder_lr: float
    ) -> io.NodeOutput:  # fmt: skip
        method = Method(
            family="full", config=FullConfig(), targets=targets, learning_rate=learning_rate,
            text_encoder=text_encoder, text_encoder_lr=text_encoder_lr,
        )  # fmt: skip
        return io.NodeOutput(method)
