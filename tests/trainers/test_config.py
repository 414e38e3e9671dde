"""Settings out of their bounds are refused by name; the loop takes its part of the options."""

import math
from typing import Any

import pytest
from hyperbooth.trainers.config import Method, TrainingOptions
from hyperbooth.trainers.data.dataset import Example, Subject
from hyperbooth.trainers.dreambooth.config import DreamBoothConfig
from hyperbooth.trainers.engine.divergence import DIVERGENCE_FACTOR
from hyperbooth.trainers.engine.loop import FitConfig
from torch import zeros

SUBJECT = Subject((Example(zeros(1, 4, 2, 2), None),))

BAD: list[tuple[type, dict[str, Any], str]] = [
    (Method, {"learning_rate": -1e-4}, "learning_rate is -0.0001"),
    (Method, {"learning_rate": math.nan}, "learning_rate is nan"),
    (Method, {"learning_rate": 2.0}, "learning_rate is 2.0"),
    (Method, {"text_encoder_lr": math.inf}, "text_encoder_lr is inf"),
    (Method, {"targets": "all"}, "targets is 'all'; give one of 'attention'"),
    (TrainingOptions, {"optimizer": "magic"}, "optimizer is 'magic'; give one of 'adamw', 'adafactor', 'sgd'"),
    (TrainingOptions, {"lr_scheduler": ""}, "lr_scheduler is ''"),
    (TrainingOptions, {"precision": "int8"}, "precision is 'int8'"),
    (TrainingOptions, {"gradient_accumulation": 0}, "gradient_accumulation is 0"),
    (TrainingOptions, {"prior_weight": -1.0}, "prior_weight is -1.0"),
    (TrainingOptions, {"max_grad_norm": math.nan}, "max_grad_norm is nan"),
    (TrainingOptions, {"preview_every": -5}, "preview_every is -5"),
    (
        DreamBoothConfig,
        {"subject": SUBJECT, "method": Method(), "options": TrainingOptions(), "steps": 0},
        "steps is 0",
    ),
    (
        DreamBoothConfig,
        {"subject": SUBJECT, "method": Method(), "options": TrainingOptions(), "steps": 1, "batch_size": 0},
        "batch_size is 0",
    ),
]


@pytest.mark.parametrize(("kind", "settings", "message"), BAD, ids=lambda value: str(value)[:40])
def test_settings_out_of_bounds_are_refused_by_name(kind: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_defaults_are_valid() -> None:
    assert Method().targets == "attention"
    assert TrainingOptions().loss_weighting == "l_simple"


def test_the_loop_takes_its_settings_from_the_options() -> None:
    options = TrainingOptions(
        lr_scheduler="cosine", warmup_steps=2, gradient_accumulation=3, max_grad_norm=0.5, validation=4,
        prior_mode="prediction", prior_weight=2.0,
    )  # fmt: skip
    config = FitConfig.from_options(options, steps=7, per_subject=True)
    assert config == FitConfig(
        steps=7, lr_scheduler="cosine", warmup_steps=2, gradient_accumulation=3, max_grad_norm=0.5, validation=4,
        divergence_factor=2 * DIVERGENCE_FACTOR, per_subject=True,
    )  # fmt: skip
