"""PaRa's node."""

from comfy_api.latest import io

from ...models.adapters import PaRaConfig
from ...models.adapters.para import INITS
from ...trainers.options import Method
from . import inputs

CONFIG = PaRaConfig()
METHOD = Method("para", CONFIG, "attention", 1e-3)


class MethodPaRa(io.ComfyNode):
    """PaRa's settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodPaRa",
            display_name="PaRa",
            category=inputs.CATEGORY,
            description="Parameter rank reduction: learns which few directions of each layer's output to remove. Half "
            "the size of a LoRA of the same rank, and adapters stack: in Combine Adapters put PaRa before LoRA.",
            inputs=[
                inputs.rank(
                    CONFIG.rank,
                    "Directions removed per layer. More holds the subject better, and leaves less to edit and vary.",
                ),
                io.Combo.Input(
                    "init",
                    options=list(INITS),
                    default=CONFIG.init,
                    tooltip="INIT",
                ),
                inputs.targets(METHOD.targets, "TARGETS"),
                inputs.learning_rate(METHOD.learning_rate, "LR"),
            ],
            outputs=[inputs.output()],
        )

    @classmethod
    def execute(cls, rank: int, init: str, targets: str, learning_rate: float) -> io.NodeOutput:
        return io.NodeOutput(Method("para", PaRaConfig(rank, init), targets, learning_rate))
