"""PaRa's node."""

from comfy_api.latest import io

from ...models.adapters import PaRaConfig
from ...models.adapters.para.adapter import INITS
from ...trainers.config import Method
from ..common import method_inputs

CONFIG = PaRaConfig()
METHOD = Method("para", CONFIG, "all but cross attention", 3e-4)
"""The layers are the paper's advice: on the small model of :class:`PaRaConfig` they took the validation loss from 0.121
to 0.080 in 120 steps, attention alone to 0.092. The rate is that at which attention alone learns as fast as LoRA of
rank 4 at 1e-4 (0.092 and 0.093; at 1e-4 0.106, at 1e-3 0.084)."""


class MethodPaRa(io.ComfyNode):
    """PaRa's settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodPaRa",
            display_name="PaRa",
            category=method_inputs.CATEGORY,
            description="Parameter rank reduction: learns which few directions of each layer's output to remove. Half "
            "the size of a LoRA of the same rank, and adapters stack: in Combine Adapters put PaRa before LoRA.",
            inputs=[
                method_inputs.rank(
                    CONFIG.rank,
                    "Directions removed per layer. More holds the subject better, and leaves less to edit and vary.",
                ),
                io.Combo.Input(
                    "init",
                    options=list(INITS),
                    default=CONFIG.init,
                    tooltip="Where it starts. smallest singular: on the directions the model uses least, next to the "
                    "unchanged model. random: anywhere.",
                ),
                method_inputs.targets(
                    METHOD.targets, "Which layers change. All but cross attention is the paper's advice."
                ),
                method_inputs.learning_rate(
                    METHOD.learning_rate, "3e-4 learns as fast as LoRA at 1e-4; lower if samples turn to noise."
                ),
            ],
            outputs=[method_inputs.output()],
        )

    @classmethod
    def execute(cls, rank: int, init: str, targets: str, learning_rate: float) -> io.NodeOutput:
        return io.NodeOutput(Method("para", PaRaConfig(rank, init), targets, learning_rate))
