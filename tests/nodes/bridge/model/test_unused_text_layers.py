"""Layers of a text encoder after the one whose output is used are not trained: they would stay at zero."""

from typing import Any

import pytest
from helpers.training import lora, train


@pytest.mark.parametrize(("skip", "last"), [(None, 12), (-2, 11)])
def test_layers_after_a_skip_are_no_targets(node: Any, loaded: Any, subject: Any, skip: int | None, last: int) -> None:
    clip = loaded[1].clone()
    if skip is not None:
        clip.clip_layer(skip)
    method = lora(text_encoder=True, learning_rate=3e-3, text_encoder_lr=3e-3)
    adapter, _, _ = train(node, loaded, subject, method, 1, clip=clip)
    layers = {
        name: layer for name, layer in adapter.adapters[0].layers.items() if name.startswith("text_encoders.clip_l.")
    }
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in layers} == set(range(last))
    assert all(layer.up.abs().sum().item() > 0 for layer in layers.values())
