"""Node of PaRa."""

from comfy_api.latest import io

from ...models.adapters import PaRaConfig
from ...models.adapters.para.adapter import INITS
from ...trainers.config import Method
from ..common import method_inputs
from ..common.node import Node

CONFIG = PaRaConfig()
METHOD = Method(family="para", config=CONFIG, targets="all but cross attention", learning_rate=3e-4)
"""The layers are the paper's advice: on the small model of :class:`PaRaConfig` they took the validation loss from 0.121
to 0.080 in 120 steps, attention alone to 0.092. The learning rate is the one at which attention alone learns as fast as
LoRA of rank 4 at 1e-4 (0.092 and 0.093; at 1e-4 0.106, at 1e-3 0.084)."""


class MethodPaRa(Node):
    """Choose PaRa."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodPaRa",
            display_name="PaRa",
            category=method_inputs.CATEGORY,
            description="Parameter rank reduction: learns which few directions of each layer's output to remove. Half "
            "the size of a LoRA of the same rank. In Combine Adapters put PaRa before LoRA.",
            inputs=[
                method_inputs.rank(
                    CONFIG.rank,
                    "Directions removed per layer. More follow the subject better, and leave less to edit and vary.",
                ),
                io.Combo.Input(
                    "init",
                    options=list(INITS),
                    default=CONFIG.init,
                    tooltip="Initial directions. smallest singular: those that the weights use least, so that training "
                    "starts close to the unchanged model. random: drawn at random.",
                ),
                method_inputs.targets(
                    METHOD.targets, "Which layers are trained. All but cross attention is the paper's advice."
                ),
                method_inputs.learning_rate(
                    METHOD.learning_rate,
                    "Learning rate. 3e-4 learns as fast as LoRA at 1e-4; lower if samples turn to noise.",
                ),
            ],
            outputs=[method_inputs.output()],
        )

    @classmethod
    def execute(cls, rank: int, init: str, targets: str, learning_rate: float) -> io.NodeOutput:
        config = PaRaConfig(rank=rank, init=init)
        return io.NodeOutput(Method(family="para", config=config, targets=targets, learning_rate=learning_rate))
