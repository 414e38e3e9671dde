"""How it is learnt: the parametrisation of the change."""

from comfy_api.latest import io

from ..models.adapters import FullConfig, LoRAConfig
from ..models.targets import RULES
from ..trainers.options import Method
from . import sockets

LORA = LoRAConfig()
METHOD = Method()
FULL = Method("full", FullConfig(), "all weights", 5e-6, False, 5e-6)


def _targets(default: str, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("targets", options=list(RULES), default=default, tooltip=tooltip)


def _learning_rate(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=1e-6, round=False, tooltip=tooltip)


def _text_encoder(method: Method) -> tuple[io.Boolean.Input, io.Float.Input]:
    switch = io.Boolean.Input(
        "text_encoder",
        default=method.text_encoder,
        tooltip="Also train the text encoder; connect clip to Train Adapter.",
    )
    return switch, _learning_rate(
        "text_encoder_lr", method.text_encoder_lr, "Learning rate of the text encoder's part."
    )


class MethodLoRA(io.ComfyNode):
    """LoRA's settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodLoRA",
            display_name="LoRA",
            category=f"{sockets.CATEGORY}/methods",
            description="Low-rank adaptation: a small matrix pair beside each layer. The usual choice.",
            inputs=[
                io.Int.Input(
                    "rank",
                    default=LORA.rank,
                    min=1,
                    max=4096,
                    tooltip="Directions per layer. 4 to 16 for one subject; more holds more and overfits sooner.",
                ),
                io.Float.Input(
                    "alpha",
                    default=LORA.alpha,
                    min=0.001,
                    max=4096.0,
                    step=0.5,
                    tooltip="The change is scaled by alpha / rank. Equal to the rank: not scaled.",
                ),
                _targets(METHOD.targets, "Which layers change. Attention is the paper's choice and the fastest."),
                _learning_rate(
                    "learning_rate",
                    METHOD.learning_rate,
                    "Of the diffusion model's part. 1e-4 with AdamW; lower if samples turn to noise.",
                ),
                *_text_encoder(METHOD),
            ],
            outputs=[sockets.Method.Output(display_name="method", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(
        cls, rank: int, alpha: float, targets: str, learning_rate: float, text_encoder: bool, text_encoder_lr: float
    ) -> io.NodeOutput:
        config = LoRAConfig(rank, alpha)
        return io.NodeOutput(Method("lora", config, targets, learning_rate, text_encoder, text_encoder_lr))


class MethodDreamBooth(io.ComfyNode):
    """Full fine-tuning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodDreamBooth",
            display_name="DreamBooth (full)",
            category=f"{sockets.CATEGORY}/methods",
            description="Every number of the chosen weights may change, as in the DreamBooth paper. Takes 16 bytes of "
            "memory per number with AdamW, 8 with adafactor; LoRA takes a hundredth. The result is an adapter of full "
            "differences; apply it and use Save Checkpoint for a checkpoint.",
            inputs=[
                _targets(FULL.targets, "Which weights change: all (biases and norms apart), or those of some layers."),
                _learning_rate("learning_rate", FULL.learning_rate, "Of the diffusion model. 5e-6 in the paper."),
                *_text_encoder(FULL),
            ],
            outputs=[sockets.Method.Output(display_name="method", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(
        cls, targets: str, learning_rate: float, text_encoder: bool, text_encoder_lr: float
    ) -> io.NodeOutput:  # fmt: skip
        return io.NodeOutput(Method("full", FullConfig(), targets, learning_rate, text_encoder, text_encoder_lr))
