"""Node of Textual Inversion: an embedding is learned, no layer changes."""

from comfy_api.latest import io

from ...models.textual_inversion.embeddings import FAMILY, MAX_VECTORS, TextualInversionConfig
from ...trainers.config import Method
from ..common import method_inputs, sockets
from ..common.node import Node

CONFIG = TextualInversionConfig()
LEARNING_RATE = 5e-3
"""Our choice: the base rate of the paper (section 4), which scaled it by GPUs and batch size to 0.04; diffusers has
5e-4."""


class MethodTextualInversion(Node):
    """Choose Textual Inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodTextualInversion",
            display_name="Textual Inversion",
            category=method_inputs.CATEGORY,
            description="Learns the embedding of a new placeholder token: a few vectors at the text encoders' input "
            "are trained, the model is unchanged. The smallest file, and no other prompt changes. A LoRA can be "
            "trained on top.",
            inputs=[
                io.String.Input(
                    "token",
                    default=CONFIG.token,
                    tooltip="The placeholder token, without spaces. Write it in Subject's prompt: 'a photo of "
                    "sks-dog'. Later prompts write embedding:sks-dog.",
                ),
                io.String.Input(
                    "initializer_word",
                    default=CONFIG.initializer_word,
                    tooltip="What the subject is, in one common word, whose embedding initializes the vectors.",
                ),
                io.Int.Input(
                    "vectors",
                    default=CONFIG.vectors,
                    min=1,
                    max=MAX_VECTORS,
                    tooltip="Number of vectors, each of which takes the position of one token. 1 as in the paper; 2 to "
                    "8 hold more of the subject and follow other words less.",
                ),
                method_inputs.learning_rate(
                    LEARNING_RATE, "Learning rate. 5e-3 with AdamW; 5e-4 for a slow, careful run."
                ),
            ],
            outputs=[sockets.Method.Output(display_name="method", tooltip="For Train Adapter; connect clip there.")],
        )

    @classmethod
    def execute(cls, token: str, initializer_word: str, vectors: int, learning_rate: float) -> io.NodeOutput:
        config = TextualInversionConfig(token=token.strip(), initializer_word=initializer_word.strip(), vectors=vectors)
        return io.NodeOutput(Method(family=FAMILY, config=config, learning_rate=learning_rate))
