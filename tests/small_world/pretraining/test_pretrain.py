"""Test that every network of the world can be pretrained, resumed, and saved."""

from pathlib import Path

import pytest
import torch

from tools.small_world.base import checkpoint, latents, train_autoencoder, train_base
from tools.small_world.oracle import train as train_oracle
from tools.small_world.oracle import trained
from tools.small_world.pretraining.loop import Plan
from tools.small_world.vision import encoder
from tools.small_world.vision import train as train_vision

FEW = Plan(steps=2, rate=1e-3, warmup=1)


def test_each_is_trained_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "PART", 100)
    for module, size in ((train_autoencoder, 2), (train_base, 8), (train_oracle, 17), (train_vision, 4)):
        monkeypatch.setattr(module, "BATCH", size)
    out = tmp_path / "kept"
    out.mkdir()
    autoencoder = train_autoencoder.train(tmp_path, FEW)
    base = train_base.train(tmp_path, autoencoder, FEW, examples=150)
    checkpoint.pack(autoencoder, base, out / "base.safetensors")
    trained.keep(train_oracle.train(tmp_path, autoencoder, FEW), out / "oracle.safetensors")
    encoder.keep(train_vision.train(tmp_path, FEW), out / "vision.safetensors")
    sizes = {path.stem: path.stat().st_size for path in out.glob("*.safetensors")}
    assert sizes["base"] + sizes["vision"] < 12e6 and sizes["oracle"] < 2.5e6
    assert len(list((tmp_path / "latents").glob("*.safetensors"))) == 2
    again = train_base.train(tmp_path, autoencoder, FEW, examples=150)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), again.parameters(), strict=True))


def test_faces_weigh_most() -> None:
    _, weights = train_autoencoder.images_of(1, 3)
    assert weights.shape == (3, 1, 64, 64)
    for weight in weights:
        assert set(weight.unique().tolist()) == {1.0, train_autoencoder.HEAD, train_autoencoder.FACE}
        assert 0.05 < (weight == train_autoencoder.FACE).float().mean() < 0.3
