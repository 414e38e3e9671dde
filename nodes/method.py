"""How it is learnt: the parametrisation, and the options of training."""

from comfy_api.latest import io

from ..models.adapters import LoRAConfig
from ..models.targets import RULES
from ..trainers.losses import WEIGHTINGS
from ..trainers.noise import SAMPLERS
from ..trainers.options import OPTIMIZERS, PRECISIONS, PRIOR_MODES, SCHEDULES, Method, TrainingOptions
from . import sockets

LORA = LoRAConfig()
METHOD = Method()
OPTIONS = TrainingOptions()


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
                io.Combo.Input(
                    "targets",
                    options=list(RULES),
                    default=METHOD.targets,
                    tooltip="Which layers change. Attention is the paper's choice and the fastest.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=METHOD.learning_rate,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="Of the diffusion model's part. 1e-4 with AdamW; lower if samples turn to noise.",
                ),
                io.Boolean.Input(
                    "text_encoder",
                    default=METHOD.text_encoder,
                    tooltip="Also train the text encoder; connect clip to Train Adapter.",
                ),
                io.Float.Input(
                    "text_encoder_lr",
                    default=METHOD.text_encoder_lr,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="Learning rate of the text encoder's part.",
                ),
            ],
            outputs=[sockets.Method.Output(display_name="method", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(
        cls, rank: int, alpha: float, targets: str, learning_rate: float, text_encoder: bool, text_encoder_lr: float
    ) -> io.NodeOutput:
        config = LoRAConfig(rank, alpha)
        return io.NodeOutput(Method("lora", config, targets, learning_rate, text_encoder, text_encoder_lr))


class Options(io.ComfyNode):
    """Everything else about training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothTrainingOptions",
            display_name="Training Options",
            category=f"{sockets.CATEGORY}/training",
            description="Optional: optimizer, loss, memory and previews. The defaults are the papers'.",
            inputs=[
                io.Combo.Input(
                    "optimizer", options=list(OPTIMIZERS), default=OPTIONS.optimizer, tooltip="AdamW is the usual one."
                ),
                io.Combo.Input(
                    "lr_scheduler",
                    options=list(SCHEDULES),
                    default=OPTIONS.lr_scheduler,
                    tooltip="Course of the learning rate; all but constant fall to zero at the end.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=OPTIONS.warmup_steps,
                    min=0,
                    max=100000,
                    tooltip="Steps over which the learning rate rises to its full value.",
                ),
                io.Combo.Input(
                    "loss_weighting",
                    options=list(WEIGHTINGS),
                    default=OPTIONS.loss_weighting,
                    tooltip="l_simple: the papers' objective. min_snr: less weight on small noise, learns faster. "
                    "x0: plain error of the picture, as ComfyUI's own trainer.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=OPTIONS.min_snr_gamma,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    tooltip="Gamma of min_snr; 5 is that paper's.",
                ),
                io.Combo.Input(
                    "noise_sampling",
                    options=list(SAMPLERS),
                    default=OPTIONS.noise_sampling,
                    tooltip="How often each noise level is trained: all alike, or the middle ones more (SD3).",
                ),
                io.Combo.Input(
                    "prior_mode",
                    options=list(PRIOR_MODES),
                    default=OPTIONS.prior_mode,
                    tooltip="Prior preservation from the subject's class images, if it has any; or none.",
                ),
                io.Float.Input(
                    "prior_weight",
                    default=OPTIONS.prior_weight,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Weight of the class images; the paper takes 1.",
                ),
                io.Int.Input(
                    "gradient_accumulation",
                    default=OPTIONS.gradient_accumulation,
                    min=1,
                    max=1024,
                    tooltip="Batches per step: a larger batch without more memory, at its cost in time.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=OPTIONS.max_grad_norm,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Longer gradients are shortened to this; 0 switches it off.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=OPTIONS.gradient_checkpointing,
                    tooltip="Much less memory, about a third more time. Turn on if memory runs out.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=OPTIONS.precision,
                    tooltip="Of the computation; the adapter itself is always float32. auto: as the model runs.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=OPTIONS.preview_every,
                    min=0,
                    max=100000,
                    tooltip="Steps between sample pictures in the running node; 0 for none. One costs about as much "
                    "as 10 steps.",
                ),
            ],
            outputs=[sockets.Options.Output(display_name="options", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(cls, **options: object) -> io.NodeOutput:
        return io.NodeOutput(TrainingOptions(**options))
