"""How a bank's subjects are trained: refused where it cannot be, and told apart in every setting that counts."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hyperbooth.models.adapters import LiDBConfig, LoRAConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.trainers.config import Method, TrainingOptions
from hyperbooth.trainers.subject_bank.config import BankConfig

SHAPES = {"diffusion_model.a.attn1.to_q": (12, 9), "diffusion_model.a.conv": (8, 3, 3, 3)}
LIDB = Method("lidb", LiDBConfig(1, 7, 5), "attention", 1e-2)
RECIPE = BankConfig(LIDB, "a sks face", 7)


def settings(recipe: BankConfig) -> dict[str, Any]:
    return recipe.settings(recipe.start(SHAPES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": "a face" + " very" * 2000}, "has 10006 characters.*; give at most 10000"),
        ({"prompt": "a \ud800 face"}, "such as no file can hold"),
        ({"method": Method("lora", LoRAConfig())}, "makes lora; a bank holds lidb"),
        ({"options": TrainingOptions(optimizer="adafactor")}, "optimizer 'adafactor'"),
        ({"options": TrainingOptions(prior_mode="prediction")}, "prior_mode 'prediction'"),
        ({"options": TrainingOptions(caption_dropout=0.5)}, "caption_dropout"),
        ({"captions": True, "method": replace(LIDB, text_encoder=True)}, "switch text_encoder off .*, or captions"),
    ],
)
def test_what_a_bank_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "b"}, {"steps": 8}, {"seed": 1}, {"resolution": 8}, {"shared_input": True}, {"captions": True},
        {"method": replace(LIDB, learning_rate=1.0)}, {"method": replace(LIDB, config=LiDBConfig(1, 7, 5, 1))},
        {"options": TrainingOptions(noise_offset=0.1)}, {"options": TrainingOptions(max_grad_norm=0.5)},
    ],
)  # fmt: skip
def test_every_setting_that_counts_is_told(change: dict[str, Any]) -> None:
    assert settings(replace(RECIPE, **change)) != settings(RECIPE)


@pytest.mark.parametrize(
    "cosmetic",
    [{"preview_every": 7}, {"memory": "as set"}, {"gradient_checkpointing": True}, {"precision": "bfloat16"}],
)
def test_what_changes_nothing_is_not(cosmetic: dict[str, Any]) -> None:
    assert settings(replace(RECIPE, options=TrainingOptions(**cosmetic))) == settings(RECIPE)


def test_settings_survive_json() -> None:
    assert json.loads(json.dumps(settings(RECIPE))) == settings(RECIPE)


def test_the_start_is_the_seeds() -> None:
    first, again, other = (recipe.start(SHAPES) for recipe in (RECIPE, RECIPE, replace(RECIPE, seed=1)))
    layout = ParameterLayout.of(first)
    assert layout.pack(first).equal(layout.pack(again)) and not layout.pack(first).equal(layout.pack(other))
