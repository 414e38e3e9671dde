"""The configuration of a bank: what cannot be built is refused, and every setting that matters is recorded."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hyperbooth.models.adapters import LiDBConfig, LoRAConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.trainers.config import Method, TrainingOptions
from hyperbooth.trainers.subject_bank.config import BankConfig

SHAPES = {"diffusion_model.a.attn1.to_q": (12, 9), "diffusion_model.a.conv": (8, 3, 3, 3)}
LIDB = Method(family="lidb", config=LiDBConfig(rank=1, a=7, b=5), targets="attention", learning_rate=1e-2)
CONFIG = BankConfig(method=LIDB, prompt="a sks face", steps=7)


def settings(config: BankConfig) -> dict[str, Any]:
    return config.settings(config.start(SHAPES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps.*0"),
        ({"prompt": " "}, "prompt.*empty"),
        ({"prompt": "a face" + " very" * 2000}, "prompt.*10006.*10000"),
        ({"prompt": "a \ud800 face"}, r"prompt.*\\ud800"),
        ({"method": Method(family="lora", config=LoRAConfig())}, "method.*lora.*lidb"),
        ({"options": TrainingOptions(optimizer="adafactor")}, "optimizer 'adafactor'"),
        ({"options": TrainingOptions(prior_mode="prediction")}, "prior_mode 'prediction'"),
        ({"options": TrainingOptions(caption_dropout=0.5)}, "caption_dropout"),
        ({"captions": True, "method": replace(LIDB, text_encoder=True)}, "captions.*text_encoder"),
    ],
)
def test_what_a_bank_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "b"}, {"steps": 8}, {"seed": 1}, {"resolution": 8}, {"shared_input": True}, {"captions": True},
        {"method": replace(LIDB, learning_rate=1.0)},
        {"method": replace(LIDB, config=LiDBConfig(rank=1, a=7, b=5, basis_seed=1))},
        {"options": TrainingOptions(noise_offset=0.1)}, {"options": TrainingOptions(max_grad_norm=0.5)},
    ],
)  # fmt: skip
def test_every_setting_that_matters_is_recorded(change: dict[str, Any]) -> None:
    assert settings(replace(CONFIG, **change)) != settings(CONFIG)


@pytest.mark.parametrize(
    "cosmetic",
    [{"preview_every": 7}, {"memory": "as set"}, {"gradient_checkpointing": True}, {"precision": "bfloat16"}],
)
def test_options_without_effect_are_not_recorded(cosmetic: dict[str, Any]) -> None:
    assert settings(replace(CONFIG, options=TrainingOptions(**cosmetic))) == settings(CONFIG)


def test_settings_survive_json() -> None:
    assert json.loads(json.dumps(settings(CONFIG))) == settings(CONFIG)


def test_the_start_depends_on_the_seed() -> None:
    first, again, other = (config.start(SHAPES) for config in (CONFIG, CONFIG, replace(CONFIG, seed=1)))
    layout = ParameterLayout.of(first)
    assert layout.pack(first).equal(layout.pack(again)) and not layout.pack(first).equal(layout.pack(other))
