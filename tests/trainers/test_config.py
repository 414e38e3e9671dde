"""Settings out of their bounds are refused by name; the loop takes its part of the options."""

import math
from typing import Any

import pytest
from hyperbooth.trainers.config import RESULTS, Method, TrainingOptions
from hyperbooth.trainers.data.dataset import Example, Subject
from hyperbooth.trainers.dreambooth.config import DreamBoothConfig
from hyperbooth.trainers.engine.divergence import DIVERGENCE_FACTOR
from hyperbooth.trainers.engine.loop import FitConfig
from torch import zeros

SUBJECT = Subject((Example(zeros(1, 4, 2, 2), None),))

BAD: list[tuple[type, dict[str, Any], str]] = [
    (Method, {"learning_rate": -1e-4}, "-0.0001"),
    (Method, {"learning_rate": math.nan}, "nan"),
    (Method, {"learning_rate": 2.0}, "2.0"),
    (Method, {"text_encoder_lr": math.inf}, "inf"),
    (Method, {"targets": "all"}, "'all'.*'attention'"),
    (TrainingOptions, {"optimizer": "magic"}, "'magic'.*'adamw', 'adafactor', 'sgd'"),
    (TrainingOptions, {"lr_scheduler": ""}, "''"),
    (TrainingOptions, {"precision": "int8"}, "'int8'"),
    (TrainingOptions, {"gradient_accumulation": 0}, "0"),
    (TrainingOptions, {"prior_weight": -1.0}, "-1.0"),
    (TrainingOptions, {"max_grad_norm": math.nan}, "nan"),
    (TrainingOptions, {"preview_every": -5}, "-5"),
    (
        DreamBoothConfig,
        {"subject": SUBJECT, "method": Method(), "options": TrainingOptions(), "steps": 0},
        "0",
    ),
    (
        DreamBoothConfig,
        {"subject": SUBJECT, "method": Method(), "options": TrainingOptions(), "steps": 1, "batch_size": 0},
        "0",
    ),
]


@pytest.mark.parametrize(("kind", "settings", "value"), BAD, ids=lambda value: str(value)[:40])
def test_settings_out_of_bounds_are_refused_by_name(kind: type, settings: dict[str, Any], value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{list(settings)[-1]} .*{value}"):
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


def test_the_result_is_chosen_by_name() -> None:
    assert TrainingOptions(result="average").ema_decay == 0.99
    assert TrainingOptions(result="average", ema_decay=0.9).ema_decay == 0.9
    taken = {result: TrainingOptions(result=result, validation=5).takes_best for result in RESULTS}
    assert taken == {"auto": True, "last step": False, "best validation": True, "average": False}
    assert not TrainingOptions().takes_best and TrainingOptions().ema_decay == 0
