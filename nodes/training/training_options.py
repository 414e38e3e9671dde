"""Node of the training options: optimizer, loss, memory, checkpoints, previews."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ...trainers.config import MEMORY_PLANS, PRECISIONS, PRIOR_MODES, RESULTS, SCHEDULES, TrainingOptions
from ...trainers.diffusion.losses import WEIGHTINGS
from ...trainers.diffusion.noise_levels import DISTRIBUTIONS
from ...trainers.engine.optimizers import OPTIMIZERS
from ..common import sockets
from ..common.node import Node

OPTIONS = TrainingOptions()


def _choice(name: str, choices: Sequence[str], tooltip: str, **more: Any) -> io.Combo.Input:
    return io.Combo.Input(name, options=list(choices), default=getattr(OPTIONS, name), tooltip=tooltip, **more)


def _whole(name: str, low: int, high: int, tooltip: str, **more: Any) -> io.Int.Input:
    return io.Int.Input(name, default=getattr(OPTIONS, name), min=low, max=high, tooltip=tooltip, **more)


def _number(name: str, low: float, high: float, step: float, tooltip: str, **more: Any) -> io.Float.Input:
    default = getattr(OPTIONS, name)
    return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip, **more)


class Options(Node):
    """Choose optimizer, loss, memory, checkpoints and previews."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothTrainingOptions",
            display_name="Training Options",
            category=f"{sockets.CATEGORY}/training",
            description="Optional: optimizer, loss, memory, checkpoints and previews. The defaults are the papers'.",
            inputs=[*_first(), *_later()],
            outputs=[sockets.Options.Output(display_name="options", tooltip="For Train Adapter.")],
        )

    @classmethod
    def execute(cls, **options: object) -> io.NodeOutput:
        return io.NodeOutput(TrainingOptions(**options))


def _first() -> list[io.Input]:
    """Return the inputs of the first version."""
    return [
        _choice("optimizer", OPTIMIZERS, "AdamW is usual; adafactor keeps almost no state; sgd none."),
        _choice("lr_scheduler", SCHEDULES, "Learning-rate schedule; all but constant decay to zero at the end."),
        _whole("warmup_steps", 0, 100000, "Steps over which the learning rate rises to its full value."),
        _choice("loss_weighting", WEIGHTINGS, "l_simple: the papers' objective. min_snr: less weight on low noise, "
                "learns faster. debiased: between the two. x0: plain error of the predicted image, as ComfyUI's own "
                "trainer."),
        _number("min_snr_gamma", 0.01, 100.0, 0.1, "Gamma of min_snr; 5 is that paper's."),
        _choice("noise_sampling", DISTRIBUTIONS, "Distribution of the noise levels: uniform; more at medium noise "
                "(sigmoid; logit_normal with noise_mean and noise_std, SD3); or more at high noise (shifted by "
                "noise_shift)."),
        _choice("prior_mode", PRIOR_MODES, "Prior preservation from the subject's class images, if it has any; by "
                "prediction: the model without the adapter is the teacher for the class prompt, no image needed; or "
                "none."),
        _number("prior_weight", 0.0, 100.0, 0.05, "Weight of the prior preservation loss; 1 in the paper."),
        _whole("gradient_accumulation", 1, 1024, "Batches per optimizer step: a larger effective batch without more "
               "memory; a step takes that many times longer."),
        _number("max_grad_norm", 0.0, 1000.0, 0.1, "Gradient clipping: maximum norm; 0 switches it off."),
        io.Boolean.Input("gradient_checkpointing", default=OPTIONS.gradient_checkpointing,
                         tooltip="Much less memory, about a third more time. memory 'auto' turns it on when needed."),
        _choice("precision", PRECISIONS, "Data type of the computation; the adapter itself is always float32. auto: as "
                "the model runs."),
        _whole("preview_every", 0, 100000, "Steps between samples in the running node; 0: none. One costs about as "
               "much as 10 steps."),
    ]  # fmt: skip


def _later() -> list[io.Input]:
    """Return the inputs added after the first version: optional and last, so that saved workflows still load."""
    return [
        _number("caption_dropout", 0.0, 1.0, 0.01, "Share of the captions replaced by the empty one; 0.1 preserves "
                "classifier-free guidance on long runs.", optional=True),
        _number("noise_offset", 0.0, 1.0, 0.01, "Offset noise, for very dark or bright images: 0.05 to 0.1, or 0.",
                optional=True),
        _number("noise_mean", -10.0, 10.0, 0.1, "Mean of logit_normal; higher trains more at high noise.",
                optional=True),
        _number("noise_std", 0.01, 10.0, 0.1, "Standard deviation of logit_normal: a larger one spreads over more "
                "noise levels.", optional=True),
        _number("noise_shift", 0.01, 100.0, 0.1, "Shift of shifted; above 1 trains more at high noise.", optional=True),
        _number("noise_low", 0.0, 1.0, 0.01, "Lowest noise level trained, as a share of all.", optional=True),
        _number("noise_high", 0.0, 1.0, 0.01, "Highest noise level trained, as a share of all.", optional=True),
        _number("ema_decay", 0.0, 0.99999, 0.001, "Decay of the exponential moving average (EMA) of the "
                "parameters, which is the result: 0.99 averages over about 100 steps. 0: no average, the last step's "
                "parameters.", round=False, optional=True),
        _whole("checkpoint_every", 0, 1000000, "Steps between checkpoints on disk, from which a killed run "
               "resumes. 0: only when cancelled and at the end.", optional=True),
        _whole("validation", 0, 100000, "Steps between validation losses, measured on fixed noise; with four images or "
               "more the last one is held out for it. 0: none. One costs 8 to 32 forward passes.",
               optional=True),
        _choice("memory", MEMORY_PLANS, "auto: splits batches into micro-batches and switches checkpointing on where "
                "free memory requires it. as set: exactly the settings here.", optional=True),
        _choice("result", RESULTS, "The step that becomes the adapter. auto: the one with the lowest validation loss "
                "if validation is on, else the last. average: the moving average at the end (ema_decay, 0.99 if "
                "that is 0). Used by Train Adapter and Fast Fine-tune.", optional=True),
        _whole("keep_every", 0, 1000000, "Steps between adapters that stay in output/loras/hyperbooth_steps, for Load "
               "Adapter and Compare Sheet; 0: none. Used by Train Adapter and Fast Fine-tune.", optional=True),
    ]  # fmt: skip
