"""Hypernetwork files: round trip, and refusal of damaged or foreign files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.models.hypernetwork.checkpoint import HEADER, load_predictor, save_predictor
from hyperbooth.models.hypernetwork.network import HyperNetwork, HyperNetworkConfig
from hyperbooth.models.hypernetwork.predictor import BaseModelRef, Predictor, is_predicted
from safetensors import safe_open
from safetensors.torch import save_file

TARGETS = [Target("diffusion_model.a.to_q", (12, 9)), Target("diffusion_model.b.conv", (8, 3, 3, 3))]
WIDTH = 6
ENCODER = BaseModelRef("clip_vision_model, width 6", {"a.weight": [0.5, 1.5], "b.weight": [1e-7, -3.25]})
BASE = BaseModelRef("SD15", {"diffusion_model.a.to_q": [1.0, 2.0], "vae.x": [3.0]})


def predictor(seed: int = 0, **settings: Any) -> Predictor:
    layout = ParameterLayout.of(Adapter.create("lidb", TARGETS, LiDBConfig(rank=1, a=7, b=5), torch.Generator()))
    config = HyperNetworkConfig(**{"width": 16, "heads": 2, "directions": 3, **settings})
    generator = torch.Generator().manual_seed(seed)
    network = HyperNetwork.create(config, layout, WIDTH, generator)
    mean, scale = torch.randn(2, layout.parameter_count, generator=generator)
    network.set_normalization(mean, scale.abs())
    return Predictor(network, ENCODER, BASE, "a [V] face", {"steps": 7, "people": 5})


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "settings", [{}, {"directions": 0, "shared_input": True}, {"shared_input": True, "learnt_input": True}]
)
def test_round_trip(tmp_path: Path, settings: dict[str, Any]) -> None:
    made = predictor(**settings)
    save_predictor(made, tmp_path / "a.safetensors")
    with torch.inference_mode():
        again = load_predictor(tmp_path / "a.safetensors")
    assert (again.encoder, again.base, again.prompt, again.metadata) == (ENCODER, BASE, "a [V] face", made.metadata)
    assert again.network.config == made.network.config and again.network.layout == made.network.layout
    assert torch.equal(made.network(tokens()[None]), again.network(tokens()[None]))
    assert all(p.requires_grad and not p.is_inference() for p in again.network.parameters())
    assert again.describe() == made.describe() and "SD15" in made.describe()


def test_a_predictor_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompt"):
        save_predictor(replace(predictor(), prompt="very " * 2001), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_half_precision_file_is_half_as_large_and_predicts_nearly_the_same(tmp_path: Path) -> None:
    made = predictor(width=64)
    save_predictor(made, tmp_path / "a.safetensors")
    save_predictor(made, tmp_path / "b.safetensors", torch.float16)
    again = load_predictor(tmp_path / "b.safetensors").network
    assert (tmp_path / "b.safetensors").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size
    assert torch.equal(again.mean, made.network.mean) and torch.equal(again.scale, made.network.scale)
    assert torch.allclose(again(tokens()[None]), made.network(tokens()[None]), atol=1e-3)


def test_a_predicted_adapter_is_saved_with_its_metadata(tmp_path: Path) -> None:
    made = predictor()
    adapter = made.predict([tokens()])
    theta = made.network.layout.pack(adapter.adapters[0])
    assert torch.allclose(theta, made.network(tokens()[None])[0])
    assert adapter.metadata["base"] == "SD15" and adapter.metadata["prompts"] == ["a [V] face"]
    assert adapter.metadata["made_for"] == [{"diffusion_model.a.to_q": [1.0, 2.0]}] and is_predicted(adapter.metadata)
    save_adapter(adapter, tmp_path / "a.safetensors")
    again = load_adapter(tmp_path / "a.safetensors")
    assert again.metadata == adapter.metadata and torch.equal(made.network.layout.pack(again.adapters[0]), theta)


def test_the_prediction_for_several_images_is_their_mean() -> None:
    made = predictor()
    singly = [made.network.layout.pack(made.predict([tokens(seed)]).adapters[0]) for seed in (1, 2)]
    both = made.network.layout.pack(made.predict([tokens(1), tokens(2)]).adapters[0])
    assert torch.allclose(both, (singly[0] + singly[1]) / 2, atol=1e-6)


def test_mismatched_inputs_are_refused_naming_both_sides() -> None:
    made = predictor()
    with pytest.raises(ValueError, match=r"clip_vision.*\(5, 7\).*width 6"):
        made.predict([torch.zeros(5, 7)])
    with pytest.raises(ValueError, match=r"^image\b"):
        made.predict([])
    with pytest.raises(ValueError, match=r"^clip_vision .*\bdinov2, width 6\b.*\bclip_vision_model, width 6\b"):
        ENCODER.check(BaseModelRef("dinov2, width 6", ENCODER.record), "clip_vision", "hypernetwork")
    with pytest.raises(ValueError, match=r"^clip_vision .*\bclip_vision_model, width 6\b.*\b40\.\d"):
        ENCODER.check(
            BaseModelRef(ENCODER.kind, {**ENCODER.record, "b.weight": [0.0, -4.7]}), "clip_vision", "hypernetwork"
        )
    with pytest.raises(ValueError, match=r"^model .*\bSD15\b"):
        BASE.check(BaseModelRef("SD15", {"other": [1.0]}), "model", "hypernetwork")
    ENCODER.check(BaseModelRef(ENCODER.kind, {"a.weight": [0.5001, 1.5], "b.weight": [0.0, -3.25]}), "clip_vision", "x")
    with torch.no_grad():
        made.network.mean[0] = torch.nan
    with pytest.raises(ValueError, match=r"^hypernetwork .*\bNaN\b"):
        made.predict([tokens()])


def changed(path: Path, **entries: Any) -> Path:
    """Replace entries of the header; ``a__b`` is entry b of entry a."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in entries.items():
        *path_to, last = name.split("__")
        target = header
        for key in path_to:
            target = target[key]
        target[last] = value
    save_file(tensors, path, {HEADER: json.dumps(header)})
    return path


DAMAGE = {
    "another version": ({"version": 99}, r"\bversion 99\b"),
    "a width other than that of the tensors": ({"config__width": 32}, r"\(.*\b32\b.*\)"),
    "an enormous depth": ({"config__depth": 60000}, "60000.*depth|depth.*60000"),
    "an unknown setting": ({"config__evil": 1}, "evil"),
    "a width that is text": ({"encoder_width": "6"}, "'6'.*width"),
    "a layout of more parameters": ({"layout__kinds": [[[12, 9], [7, 1], [1, 5]], [[8, 3, 3, 3], [7, 2], [2, 5]]]},
                                    "layout"),
    "other random bases": ({"layout__facts__probes": {"out 12 7": [9.0, 9.0, 9.0]}}, r"\b1 bases\b"),
    "a fingerprint that is no list": ({"base__record": {"a": "x"}}, "base.record"),
    "a prompt that is a number": ({"prompt": 7}, "prompt"),
    "a negative number of steps": ({"facts": {"steps": -1}}, "steps"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_header_is_refused_naming_the_file(tmp_path: Path, kind: str) -> None:
    entries, message = DAMAGE[kind]
    save_predictor(predictor(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        load_predictor(changed(tmp_path / "a.safetensors", **entries))
    assert str(caught.value).startswith("a.safetensors ")


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors.*hyperbooth_hypernetwork"):
        load_predictor(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"c\.safetensors"):
        load_predictor(tmp_path / "c.safetensors")
    broken = predictor()
    with torch.no_grad():
        broken.network.heads[0] = torch.inf
    with pytest.raises(ValueError, match=r"\bheads\b.*\bNaN\b"):
        save_predictor(broken, tmp_path / "d.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "c.safetensors"]
