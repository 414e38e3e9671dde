"""Hypernetworks in the graph: saved, loaded, and from an image to an adapter."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.reports import pack_warnings
from helpers.training import output, quick_sd15, relative, same, small_vision
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import select_targets
from hyperbooth.models.hypernetwork.network import HyperNetwork, HyperNetworkConfig
from hyperbooth.models.hypernetwork.predictor import BaseModelRef, Predictor
from hyperbooth.models.metadata.base_fingerprint import fingerprint
from hyperbooth.nodes.bridge.adapters.patching import base_weights
from hyperbooth.nodes.bridge.folders import hypernetwork_files
from hyperbooth.nodes.bridge.images.clip_vision import encoder_ref, image_tokens
from hyperbooth.nodes.bridge.model.layers import layer_shapes, trainable_layers
from torch import Tensor


@pytest.fixture(scope="module")
def loaded(quick: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    return quick


@pytest.fixture
def predictor(loaded: Any) -> Predictor:
    """Return a predictor of random weights, large enough to have a visible effect."""
    targets = select_targets(layer_shapes(trainable_layers(loaded[0])), "attention")
    draw, vision = torch.Generator().manual_seed(0), small_vision()
    layout = ParameterLayout.of(Adapter.create("lidb", targets, LiDBConfig(), draw))
    network = HyperNetwork.create(HyperNetworkConfig(width=32, heads=2, directions=2), layout, 32, draw)
    network.set_normalization(
        0.05 * torch.randn(layout.parameter_count, generator=draw), torch.full((layout.parameter_count,), 0.1)
    )
    with torch.no_grad():
        network.heads.mul_(200)
    base = BaseModelRef("SD15", fingerprint([target.name for target in targets], base_weights(loaded[0])))
    return Predictor(network, encoder_ref(vision), base, "a [V] face", {"steps": 1, "people": 2})


def pictures(seed: int = 0, count: int = 1) -> Tensor:
    return torch.rand(count, 48, 40, 3, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_the_encoders_last_but_one(predictor: Predictor) -> None:
    vision, picture = small_vision(), pictures()
    with torch.inference_mode():
        tokens = image_tokens(vision, picture)
        expected = vision.encode_image(picture).penultimate_hidden_states
        gray = image_tokens(vision, picture[..., :1])
        with_alpha = image_tokens(vision, torch.cat([picture, picture[..., :1]], -1))
    assert tokens.shape == (1, 17, 32) and torch.equal(tokens, expected) and not tokens.is_inference()
    assert gray.shape == tokens.shape and torch.equal(with_alpha, tokens)


def test_a_prediction_is_applied_saved_and_combined_like_any_adapter(
    node: Any, loaded: Any, predictor: Predictor, output_folder: Path
) -> None:
    model, clip, _ = loaded
    (first,) = node("Predict", hypernetwork=predictor, clip_vision=small_vision(), image=pictures(), model=model)
    (again,) = node("Predict", hypernetwork=predictor, clip_vision=small_vision(), image=pictures())
    (other,) = node("Predict", hypernetwork=predictor, clip_vision=small_vision(), image=pictures(1))
    assert same(first, again) and not same(first, other)
    applied = [output(node("Apply", model=model, adapter=a, strength_model=1.0)[0], clip) for a in (first, other)]
    assert relative(applied[0], output(model, clip)) > 1e-3 and relative(*applied) > 1e-4
    (path,) = node("Save", adapter=first, filename_prefix="loras/a", format="hyperbooth", precision="float32")
    assert (output_folder / path).stat().st_size < 4 * predictor.network.layout.parameter_count + 20_000
    report, _ = node("Info", adapter=first)
    assert re.search(r"hypernetwork.* 1 steps.* 2 people", report) and "a [V] face" in report


def test_saved_and_loaded_it_predicts_the_same(
    node: Any, predictor: Predictor, output_folder: Path, monkeypatch: Any
) -> None:
    import folder_paths

    folder = ([str(output_folder / "hyperbooth")], set())
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "hyperbooth", folder)
    (path,) = node("SaveHyperNetwork", hypernetwork=predictor, filename_prefix="hyperbooth/face")
    assert hypernetwork_files() == [Path(path).name]
    (again,) = node("LoadHyperNetwork", hypernetwork_name=Path(path).name)
    inputs = {"clip_vision": small_vision(), "image": pictures(count=2)}
    (first,), (second,) = (node("Predict", hypernetwork=one, **inputs) for one in (predictor, again))
    assert same(first, second) and first.metadata == second.metadata
    with pytest.raises(ValueError, match=r"^hypernetwork_name 'gone\.safetensors'"):
        node("LoadHyperNetwork", hypernetwork_name="gone.safetensors")


def test_another_encoder_or_base_is_refused_with_both_sides_named(
    node: Any, loaded: Any, predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"^clip_vision .*clip_vision_model, width 32.*hypernetwork"):
        node("Predict", hypernetwork=predictor, clip_vision=small_vision(1), image=pictures())
    adapter = predictor.predict([torch.zeros(17, 32)])
    other, _, _ = quick_sd15(tmp_path)
    with torch.inference_mode():
        for parameter in other.model.diffusion_model.parameters():
            parameter.mul_(1.2)
    with pytest.raises(ValueError, match=r"^model .*\bSD15\b.*\bhypernetwork\b.*\b20\.\d %"):
        node("Predict", hypernetwork=predictor, clip_vision=small_vision(), image=pictures(), model=other)
    with caplog.at_level(logging.WARNING):
        node("Apply", model=loaded[0], adapter=adapter, strength_model=1.0)
        assert pack_warnings(caplog) == []
        node("Apply", model=other, adapter=adapter, strength_model=1.0)
    (message,) = pack_warnings(caplog)
    assert re.search(r"\bhypernetwork\b.*\b20\.\d %", message)
