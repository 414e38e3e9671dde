"""Textual Inversion's node: a new word in place of a change of layers."""

from comfy_api.latest import io

from ...models.textual_inversion.embeddings import FAMILY, MAX_VECTORS, TextualInversionConfig
from ...trainers.config import Method
from ..common import method_inputs, sockets

WORD = TextualInversionConfig()
LEARNING_RATE = 5e-3
"""Our choice: the base rate of the paper (section 4), which scaled it by GPUs and batch to 0.04; diffusers has 5e-4."""


class MethodTextualInversion(io.ComfyNode):
    """Textual Inversion's settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodTextualInversion",
            display_name="Textual Inversion",
            category=method_inputs.CATEGORY,
            description="A new word for the prompt: a few vectors in the text encoders' embeddings are trained, the "
            "model stays as it is. The smallest file, and no other prompt changes. Then a LoRA on top, if wanted.",
            inputs=[
                io.String.Input(
                    "token",
                    default=WORD.token,
                    tooltip="Name of the word, without spaces. Write it in Subject's prompt: 'a photo of sks-dog'. "
                    "Later prompts call it embedding:sks-dog.",
                ),
                io.String.Input(
                    "initializer_word",
                    default=WORD.initializer_word,
                    tooltip="What the subject is, in one common word: its vectors start there.",
                ),
                io.Int.Input(
                    "vectors",
                    default=WORD.vectors,
                    min=1,
                    max=MAX_VECTORS,
                    tooltip="Vectors of the word, each takes the place of a token. 1 as in the paper; 2 to 8 hold "
                    "more of the subject and follow other words less.",
                ),
                method_inputs.learning_rate(LEARNING_RATE, "5e-3 with AdamW; 5e-4 for a slow, careful run."),
            ],
            outputs=[sockets.Method.Output(display_name="method", tooltip="For Train Adapter; connect clip there.")],
        )

    @classmethod
    def execute(cls, token: str, initializer_word: str, vectors: int, learning_rate: float) -> io.NodeOutput:
        config = TextualInversionConfig(token.strip(), initializer_word.strip(), vectors)
        return io.NodeOutput(Method(FAMILY, config, learning_rate=learning_rate))
