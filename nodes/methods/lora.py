"""Node of LoRA."""

from comfy_api.latest import io

from ...models.adapters import LoRAConfig
from ...trainers.config import Method
from ..common import method_inputs
from ..common.node import Node

CONFIG = LoRAConfig()
METHOD = Method()


class MethodLoRA(Node):
    """Choose LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodLoRA",
            display_name="LoRA",
            category=method_inputs.CATEGORY,
            description="Low-rank adaptation: a pair of small matrices in parallel to each layer. The usual choice.",
            inputs=[
                method_inputs.rank(
                    CONFIG.rank, "Rank of each layer's change. 4 to 16 for one subject; a higher rank overfits sooner."
                ),
                io.Float.Input(
                    "alpha",
                    default=CONFIG.alpha,
                    min=0.001,
                    max=4096.0,
                    step=0.5,
                    tooltip="The change is scaled by alpha / rank. Equal to the rank: not scaled.",
                ),
                method_inputs.targets(
                    METHOD.targets, "Which layers are trained. Attention is the paper's choice and the fastest."
                ),
                method_inputs.learning_rate(
                    METHOD.learning_rate,
                    "Learning rate of the diffusion model's layers. 1e-4 with AdamW; lower if samples turn to noise.",
                ),
                *method_inputs.text_encoder(METHOD),
            ],
            outputs=[method_inputs.output()],
        )

    @classmethod
    def execute(
        cls, rank: int, alpha: float, targets: str, learning_rate: float, text_encoder: bool, text_encoder_lr: float
    ) -> io.NodeOutput:
        method = Method(
            family="lora", config=LoRAConfig(rank=rank, alpha=alpha), targets=targets, learning_rate=learning_rate,
            text_encoder=text_encoder, text_encoder_lr=text_encoder_lr,
        )  # fmt: skip
        return io.NodeOutput(method)
