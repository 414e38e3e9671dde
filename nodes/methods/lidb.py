"""Node of LiDB."""

from comfy_api.latest import io

from ...models.adapters import LiDBConfig
from ...trainers.config import Method
from ..common import method_inputs
from ..common.node import Node

CONFIG = LiDBConfig()
METHOD = Method(
    family="lidb", config=CONFIG, targets="attention", learning_rate=1e-3, text_encoder=True, text_encoder_lr=5e-4,
    text_targets="attention and feed-forward",
)  # fmt: skip
"""On SD1.5 these are 200 layers: attention of the U-Net (128), attention and feed-forward of CLIP (72).

The rate is the one at which LiDB learns as fast as LoRA of rank 4 at 1e-4, measured as for :class:`PaRaConfig`:
validation 0.094 and 0.093 after 120 steps, 0.086 at 3e-3, 0.081 at 1e-2. LiDB has a hundred parameters
where LoRA has as many as there are outputs. Half the rate for the text encoder is customary, not measured.
"""


class MethodLiDB(Node):
    """Choose LiDB."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothMethodLiDB",
            display_name="LiDB",
            category=method_inputs.CATEGORY,
            description="Lightweight DreamBooth: a LoRA inside a small random subspace, 30,000 parameters and about "
            "120 KB for SD1.5. For very many small adapters, and for hypernetworks.",
            inputs=[
                method_inputs.rank(
                    CONFIG.rank, "Rank of each layer's change, inside the random subspace. 1 in the paper."
                ),
                io.Int.Input(
                    "a",
                    default=CONFIG.a,
                    min=1,
                    max=65536,
                    tooltip="Dimension of the random subspace of a layer's outputs. 100 in the paper.",
                ),
                io.Int.Input(
                    "b",
                    default=CONFIG.b,
                    min=1,
                    max=65536,
                    tooltip="Dimension of the random subspace of a layer's inputs. 50 in the paper.",
                ),
                io.Int.Input(
                    "basis_seed",
                    default=CONFIG.basis_seed,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of the random bases. Keep 0: only adapters of one seed can be compared and "
                    "predicted.",
                ),
                method_inputs.targets(METHOD.targets, "Which layers are trained. Attention is the paper's choice."),
                method_inputs.learning_rate(
                    METHOD.learning_rate,
                    "Learning rate of the diffusion model's layers. 1e-3 learns as fast as LoRA at 1e-4; 3e-3 for few "
                    "steps.",
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
        config = LiDBConfig(rank=rank, a=a, b=b, basis_seed=basis_seed)
        method = Method(
            family="lidb", config=config, targets=targets, learning_rate=learning_rate, text_encoder=text_encoder,
            text_encoder_lr=text_encoder_lr, text_targets=METHOD.text_targets,
        )  # fmt: skip
        return io.NodeOutput(method)
