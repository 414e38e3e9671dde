"""LiDB's node."""

from comfy_api.latest import io

from ...models.adapters import LiDBConfig
from ...trainers.config import Method
from ..common import method_inputs

CONFIG = LiDBConfig()
METHOD = Method("lidb", CONFIG, "attention", 1e-3, True, 5e-4, "attention and feed-forward")
"""On SD1.5 200 layers: attention of the U-Net (128), attention and feed-forward of CLIP (72).

The rate is that at which LiDB learns as fast as LoRA of rank 4 at 1e-4, measured as for :class:`PaRaConfig`:
validation 0.094 and 0.093 after 120 steps, 0.086 at 3e-3, 0.081 at 1e-2. A hundred numbers do what LoRA does with as
many as there are outputs. Half of it for the text encoder is custom, not measured.
"""


class MethodLiDB(io.ComfyNode):
    """LiDB's settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodLiDB",
            display_name="LiDB",
            category=method_inputs.CATEGORY,
            description="Lightweight DreamBooth: a LoRA inside a small random space, 30,000 numbers and about 120 KB "
            "for SD1.5. For very many small adapters.",
            inputs=[
                method_inputs.rank(CONFIG.rank, "Directions per layer, inside the random space. 1 in the paper."),
                io.Int.Input(
                    "a",
                    default=CONFIG.a,
                    min=1,
                    max=65536,
                    tooltip="Width of the random space on a layer's output side. 100 in the paper.",
                ),
                io.Int.Input(
                    "b",
                    default=CONFIG.b,
                    min=1,
                    max=65536,
                    tooltip="Width of the random space on a layer's input side. 50 in the paper.",
                ),
                io.Int.Input(
                    "basis_seed",
                    default=CONFIG.basis_seed,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Which random space. Keep 0: only adapters of one seed can be compared and predicted.",
                ),
                method_inputs.targets(METHOD.targets, "Which layers change. Attention is the paper's choice."),
                method_inputs.learning_rate(
                    METHOD.learning_rate,
                    "Of the diffusion model's part. 1e-3 learns as fast as LoRA at 1e-4; 3e-3 for few steps.",
                ),
                *method_inputs.text_encoder(METHOD),
            ],
            outputs=[method_inputs.output()],
        )

    @classmethod
    def execute(
        cls, rank: int, a: int, b: int, basis_seed: int, targets: str, learning_rate: float, text_encoder: bool,
        text_encoder_lr: float,
    ) -> io.NodeOutput:  # fmt: skip
        config = LiDBConfig(rank, a, b, basis_seed)
        return io.NodeOutput(
            Method("lidb", config, targets, learning_rate, text_encoder, text_encoder_lr, METHOD.text_targets)
        )
