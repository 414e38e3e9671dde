"""Settings of a training, with their defaults and the reasons for them; node schemas read the defaults here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..models.adapters import LoRAConfig
from ..models.adapters.targets import RULES
from ..models.textual_inversion.embeddings import TextualInversionConfig
from .checks import check_choice, check_number
from .diffusion.losses import WEIGHTINGS
from .diffusion.noise_levels import DISTRIBUTIONS, NoiseLevels
from .engine.divergence import DIVERGENCE_FACTOR
from .engine.lr_schedule import SCHEDULES
from .engine.optimizers import OPTIMIZERS

PRIOR_MODES = ("class images", "prediction", "none")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
MEMORY_PLANS = ("auto", "as set")
RESULTS = ("auto", "last step", "best validation", "average")
AVERAGE_DECAY = 0.99
"""Decay of the average that ``result`` asks for, unless ``ema_decay`` gives another: over about 100 steps."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """The trained parameters: an adapter family with its settings, the target layers, and the learning rates.

    Args:
        family: name of the adapter family.
        config: the family's settings.
        targets: rule for the layers, see :data:`models.adapters.targets.RULES`.
        learning_rate: of the diffusion model's adapters. 1e-4 is AdamW's usual rate for LoRA.
        text_encoder: also train the text encoder.
        text_encoder_lr: its learning rate; half the other is customary, since the text encoder overfits first.
        text_targets: rule for its layers; "" follows ``targets``, see :func:`models.adapters.targets.text_rule`.
    """

    family: str = "lora"
    config: Any = field(default_factory=LoRAConfig)
    targets: str = "attention"
    learning_rate: float = 1e-4
    text_encoder: bool = False
    text_encoder_lr: float = 5e-5
    text_targets: str = ""

    def __post_init__(self) -> None:
        check_choice("targets", self.targets, RULES)
        check_choice("text_targets", self.text_targets, ("", *RULES))
        for name in ("learning_rate", "text_encoder_lr"):
            check_number(name, getattr(self, name), 0.0, 1.0)

    @property
    def textual_inversion(self) -> TextualInversionConfig | None:
        """The settings of the learned embedding that is trained instead of layers, or None."""
        return self.config if isinstance(self.config, TextualInversionConfig) else None

    @property
    def encodes_prompts(self) -> bool:
        """Whether training changes the encoding of prompts, so that it needs the text encoder."""
        return self.text_encoder or self.textual_inversion is not None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Optimizer, loss, noise levels, memory and reporting of a training.

    Args:
        optimizer: one of :data:`.engine.optimizers.OPTIMIZERS`. AdamW: the papers' choice.
        lr_scheduler: learning-rate schedule after the warm-up, one of :data:`.engine.lr_schedule.SCHEDULES`.
        warmup_steps: steps over which the learning rate rises, (k + 1) / warmup_steps at step k.
        loss_weighting: w(sigma), see :mod:`.diffusion.losses`. ``l_simple`` is the papers'.
        min_snr_gamma: gamma of ``min_snr`` (5 is that paper's).
        noise_sampling: distribution of the noise levels, see :class:`.diffusion.noise_levels.NoiseLevels`.
        noise_mean, noise_std, noise_shift, noise_low, noise_high: its parameters.
        noise_offset: offset noise, see :func:`.diffusion.noise_levels.standard_noise`; 0.05 to 0.1 is usual.
        prior_mode: the prior-preservation term: against ``class images`` if the subject has any; or by
            ``prediction``, against the prediction of the model without the adapter for the class prompt, which needs no
            images.
        prior_weight: its weight, lambda; 1 in the DreamBooth paper.
        caption_dropout: share of the subject's prompts replaced by the empty one; 0.1 preserves classifier-free
            guidance.
        gradient_accumulation: batches per step.
        max_grad_norm: the gradient is clipped to this norm; 0 for no clipping. 1 is every trainer's default.
        gradient_checkpointing: less memory for one more forward per step.
        precision: of the computation; ``auto`` takes the dtype that the model runs with.
        memory: ``auto`` also splits batches into micro-batches and switches checkpointing on where memory is short.
        ema_decay: the result is an exponential moving average of the steps with this decay; 0 for the last step itself.
        checkpoint_every: steps between states on disk, from which a stopped run resumes; 0: at cancel and end only.
        validation: steps between validations, 0 for none; of four images or more, one is held out for it.
        result: the parameters that are the result: those of the ``last step``; of the ``best validation``, which
            ``auto`` takes if a validation runs; or the moving ``average`` at the end, see ``ema_decay``.
        keep_every: steps between adapters that stay in the output folder; 0 for none.
        preview_every: steps between preview samples in the running node, 0 for none. One costs about 20 forwards,
            which at 100 is a tenth of the time, and at 250 4 %.
    """

    optimizer: str = "adamw"
    lr_scheduler: str = "constant"
    warmup_steps: int = 0
    loss_weighting: str = "l_simple"
    min_snr_gamma: float = 5.0
    noise_sampling: str = "uniform"
    prior_mode: str = "class images"
    prior_weight: float = 1.0
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    precision: str = "auto"
    preview_every: int = 250
    caption_dropout: float = 0.0
    noise_offset: float = 0.0
    noise_mean: float = 0.0
    noise_std: float = 1.0
    noise_shift: float = 3.0
    noise_low: float = 0.0
    noise_high: float = 1.0
    ema_decay: float = 0.0
    checkpoint_every: int = 100
    validation: int = 0
    memory: str = "auto"
    result: str = "auto"
    keep_every: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, bounds in _BOUNDS.items():
            check_number(name, getattr(self, name), *bounds)
        if self.result == "best validation" and not self.validation:
            raise ValueError("result is 'best validation', but validation is 0; give the steps between validations")
        if self.result == "average" and not self.ema_decay:
            object.__setattr__(self, "ema_decay", AVERAGE_DECAY)
        if self.noise_low >= self.noise_high:
            raise ValueError(f"noise_low is {self.noise_low}, noise_high {self.noise_high}; give a lower noise_low")

    @property
    def noise_levels(self) -> NoiseLevels:
        """The distribution of the noise levels."""
        return NoiseLevels(
            distribution=self.noise_sampling,
            mean=self.noise_mean,
            std=self.noise_std,
            shift=self.noise_shift,
            low=self.noise_low,
            high=self.noise_high,
        )

    @property
    def takes_best(self) -> bool:
        """Whether the result is the step with the lowest validation loss; ``auto`` takes it where there is one."""
        return self.validation > 0 and self.result in ("auto", "best validation")

    @property
    def divergence_factor(self) -> float:
        """How many times the first losses later ones may be.

        A prior term by prediction starts at zero, and grows by its weight.
        """
        return DIVERGENCE_FACTOR * (max(1.0, self.prior_weight) if self.prior_mode == "prediction" else 1.0)


_CHOICES: Mapping[str, Any] = {
    "optimizer": OPTIMIZERS,
    "lr_scheduler": SCHEDULES,
    "loss_weighting": WEIGHTINGS,
    "noise_sampling": DISTRIBUTIONS,
    "prior_mode": PRIOR_MODES,
    "precision": PRECISIONS,
    "memory": MEMORY_PLANS,
    "result": RESULTS,
}

_BOUNDS: Mapping[str, tuple[float, ...]] = {
    "warmup_steps": (0,),
    "min_snr_gamma": (0.01,),
    "prior_weight": (0,),
    "caption_dropout": (0, 1),
    "noise_offset": (0, 1),
    "noise_mean": (-10, 10),
    "noise_std": (0.01, 10),
    "noise_shift": (0.01, 100),
    "noise_low": (0, 1),
    "noise_high": (0, 1),
    "gradient_accumulation": (1,),
    "max_grad_norm": (0,),
    "ema_decay": (0, 0.99999),
    "checkpoint_every": (0,),
    "validation": (0,),
    "preview_every": (0,),
    "keep_every": (0,),
}
