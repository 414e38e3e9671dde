"""Full fine-tuning's node."""

from comfy_api.latest import io

from ...models.adapters import FullConfig
from ...trainers.config import Method
from ..common import method_inputs

METHOD = Method("full", FullConfig(), "all weights", 5e-6, False, 5e-6)


class MethodDreamBooth(io.ComfyNode):
    """Full fine-tuning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodDreamBooth",
            display_name="DreamBooth (full)",
            category=method_inputs.CATEGORY,
            description="Every number of the chosen weights may change, as in the DreamBooth paper. Takes 16 bytes of "
            "memory per number with AdamW, 8 with adafactor; LoRA takes a hundredth. The result is an adapter of full "
            "differences; apply it and use Save Checkpoint for a checkpoint.",
            inputs=[
                method_inputs.targets(
                    METHOD.targets, "Which weights change: all (biases and norms apart), or those of some layers."
                ),
                method_inputs.learning_rate(METHOD.learning_rate, "Of the diffusion model. 5e-6 in the paper."),
                *method_inputs.text_encoder(METHOD),
            ],
            outputs=[method_inputs.output()],
        )

    @classmethod
    def execute(
        cls, targets: str, learning_rate: float, text_encoder: bool, text_encoder_lr: float
    ) -> io.NodeOutput:  # fmt: skip
        return io.NodeOutput(Method("full", FullConfig(), targets, learning_rate, text_encoder, text_encoder_lr))
