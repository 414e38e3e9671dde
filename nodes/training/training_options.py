"""How training runs: optimizer, objective, memory, states, previews."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ...trainers.config import MEMORY_PLANS, PRECISIONS, PRIOR_MODES, SCHEDULES, TrainingOptions
from ...trainers.diffusion.losses import WEIGHTINGS
from ...trainers.diffusion.noise_levels import DISTRIBUTIONS
from ...trainers.engine.optimizers import OPTIMIZERS
from ..common import sockets

OPTIONS = TrainingOptions()


def _choice(name: str, choices: Sequence[str], tooltip: str, **more: Any) -> io.Combo.Input:
    return io.Combo.Input(name, options=list(choices), default=getattr(OPTIONS, name), tooltip=tooltip, **more)


def _whole(name: str, low: int, high: int, tooltip: str, **more: Any) -> io.Int.Input:
    return io.Int.Input(name, default=getattr(OPTIONS, name), min=low, max=high, tooltip=tooltip, **more)


def _number(name: str, low: float, high: float, step: float, tooltip: str, **more: Any) -> io.Float.Input:
    default = getattr(OPTIONS, name)
    return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip, **more)


class Options(io.ComfyNode):
    """Everything else about training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothTrainingOptions",
            display_name="Training Options",
            category=f"{sockets.CATEGORY}/training",
            description="Optional: optimizer, loss, memory, states and previews. The defaults are the papers'.",
            inputs=[*_first(), *_later()],
            outputs=[sockets.Options.Output(display_name="options", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(cls, **options: object) -> io.NodeOutput:
        return io.NodeOutput(TrainingOptions(**options))


def _first() -> list[io.Input]:
    return [
        _choice("optimizer", OPTIMIZERS, "AdamW is the usual one; adafactor keeps next to nothing per weight; sgd "
                "nothing at all."),
        _choice("lr_scheduler", SCHEDULES, "Course of the learning rate; all but constant fall to zero at the end."),
        _whole("warmup_steps", 0, 100000, "Steps over which the learning rate rises to its full value."),
        _choice("loss_weighting", WEIGHTINGS, "l_simple: the papers' objective. min_snr: less weight on small noise, "
                "learns faster. debiased: between the two. x0: plain error of the picture, as ComfyUI's own trainer."),
        _number("min_snr_gamma", 0.01, 100.0, 0.1, "Gamma of min_snr; 5 is that paper's."),
        _choice("noise_sampling", DISTRIBUTIONS, "How often each noise level is trained: all alike (uniform), the "
                "middle ones more (sigmoid; logit_normal with noise_mean and noise_std, SD3), or the high ones "
                "(shifted by noise_shift)."),
        _choice("prior_mode", PRIOR_MODES, "Prior preservation from the subject's class images, if it has any; by "
                "prediction: the model without the adapter is the teacher for the class prompt, no image needed; or "
                "none."),
        _number("prior_weight", 0.0, 100.0, 0.05, "Weight of prior preservation; the paper takes 1."),
        _whole("gradient_accumulation", 1, 1024, "Batches per step: a larger batch without more memory, at its cost "
               "in time."),
        _number("max_grad_norm", 0.0, 1000.0, 0.1, "Longer gradients are shortened to this; 0 switches it off."),
        io.Boolean.Input("gradient_checkpointing", default=OPTIONS.gradient_checkpointing,
                         tooltip="Much less memory, about a third more time. memory 'auto' turns it on when needed."),
        _choice("precision", PRECISIONS, "Of the computation; the adapter itself is always float32. auto: as the model "
                "runs."),
        _whole("preview_every", 0, 100000, "Steps between sample pictures in the running node; 0 for none. One costs "
               "about as much as 10 steps."),
    ]  # fmt: skip


def _later() -> list[io.Input]:
    """Inputs that came after the first version: optional, at the end, so that saved workflows and prompts go on."""
    return [
        _number("caption_dropout", 0.0, 1.0, 0.01, "Share of the texts replaced by the empty one; 0.1 keeps guidance "
                "in tune on long runs.", optional=True),
        _number("noise_offset", 0.0, 1.0, 0.01, "Offset noise, for very dark or bright pictures: 0.05 to 0.1, or 0.",
                optional=True),
        _number("noise_mean", -10.0, 10.0, 0.1, "Of logit_normal; higher trains more at high noise.", optional=True),
        _number("noise_std", 0.01, 10.0, 0.1, "Of logit_normal; wider spreads over more levels.", optional=True),
        _number("noise_shift", 0.01, 100.0, 0.1, "Of shifted; above 1 trains more at high noise.", optional=True),
        _number("noise_low", 0.0, 1.0, 0.01, "Lowest noise level trained, as a share of all.", optional=True),
        _number("noise_high", 0.0, 1.0, 0.01, "Highest noise level trained, as a share of all.", optional=True),
        _number("ema_decay", 0.0, 0.99999, 0.001, "The result is a moving average of the steps: 0.99 looks back over "
                "about 100. 0: the last step itself.", round=False, optional=True),
        _whole("checkpoint_every", 0, 1000000, "Steps between states on disk, from which a run that was killed goes "
               "on. 0: only when cancelled and at the end.", optional=True),
        _whole("validation", 0, 100000, "Steps between measurements on fixed noise, shown beside the loss; with four "
               "pictures or more the last one is held out for it. 0: none. One costs 8 to 32 forwards.",
               optional=True),
        _choice("memory", MEMORY_PLANS, "auto: splits batches and switches checkpointing on if free memory asks for "
                "it. as set: exactly the settings here.", optional=True),
    ]  # fmt: skip
