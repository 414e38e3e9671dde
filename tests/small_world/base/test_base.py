"""Test that the stock loader reproduces the world's trained model in ComfyUI."""

from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from hyperbooth.nodes.bridge.model.layers import architecture
from torch import nn

from tools.small_world.base.autoencoder import CHANNELS, Autoencoder
from tools.small_world.base.checkpoint import checkpoint, pack
from tools.small_world.base.family import register
from tools.small_world.base.network import Base, base_loss, noise_levels
from tools.small_world.base.tokenizer import CaptionTokenizer

CAPTIONS = ["a face in the snow, smiling, as a sketch", "a vase", ""]


@pytest.fixture(scope="module")
def trained() -> tuple[Autoencoder, Base]:
    """Return networks with random nonzero parameters that are exact in half precision."""
    autoencoder, base = Autoencoder().eval(), Base(CaptionTokenizer())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*autoencoder.parameters(), *base.parameters()]:
            fan = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * fan**-0.5).half())
        for layer in autoencoder.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return autoencoder, base


@pytest.fixture(scope="module")
def loaded(trained: tuple[Autoencoder, Base], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    folder = tmp_path_factory.mktemp("world")
    pack(*trained, folder / "weights.safetensors")
    register()
    path = checkpoint(folder / "world.safetensors", folder / "weights.safetensors")
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path), model_options={"dtype": torch.float32})
    return model, clip, vae


def near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 2e-3) -> bool:
    """Return whether the relative difference is within the rounding of the weights to half precision."""
    return ((ours - theirs).norm() / theirs.norm()).item() < tolerance


def test_it_is_a_family_of_its_own(loaded: tuple[Any, Any, Any]) -> None:
    assert architecture(loaded[0]) == "Portraits"
    assert loaded[0].model.latent_format.latent_channels == CHANNELS


@torch.no_grad()
def test_the_vae_is_the_autoencoder(trained: tuple[Autoencoder, Base], loaded: tuple[Any, Any, Any]) -> None:
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    latents = loaded[2].encode(images)
    assert latents.shape == (2, CHANNELS, 8, 8)
    assert near(latents, trained[0].encode(images.movedim(-1, 1)))
    decoded = trained[0].decode(latents).movedim(1, -1).clamp(0, 1)
    assert near(loaded[2].decode(latents), decoded)


@torch.no_grad()
def test_the_clip_is_the_text_encoder(trained: tuple[Autoencoder, Base], loaded: tuple[Any, Any, Any]) -> None:
    tokenizer, clip = CaptionTokenizer(), loaded[1]
    for caption in [*CAPTIONS, "a sks face, in sepia"]:
        ((cond, _),) = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
        assert near(cond, trained[1].context(torch.tensor([tokenizer.padded(tokenizer.ids(caption))])))


@torch.no_grad()
def test_the_model_estimates_what_was_trained(trained: tuple[Autoencoder, Base], loaded: tuple[Any, Any, Any]) -> None:
    """ComfyUI's model returns ``x0 = x - sigma eps`` for noisy latents ``x``."""
    base, tokenizer, model = trained[1], CaptionTokenizer(), loaded[0]
    comfy.model_management.load_models_gpu([model])
    tokens = torch.tensor([tokenizer.padded(tokenizer.ids(CAPTIONS[0]))])
    noisy = torch.randn(1, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(2)) * 5
    step = torch.tensor([600])
    sigma = noise_levels()[step]
    eps = base(noisy / (sigma**2 + 1).sqrt(), step, tokens)
    with torch.inference_mode():
        estimate = model.model.apply_model(noisy, sigma, c_crossattn=base.context(tokens))
    assert near(estimate, noisy - sigma * eps)


def test_the_noise_schedule_is_comfyuis(loaded: tuple[Any, Any, Any]) -> None:
    assert torch.allclose(noise_levels(), loaded[0].get_model_object("model_sampling").sigmas, rtol=1e-4)


def test_everything_in_the_base_is_trained(trained: tuple[Autoencoder, Base]) -> None:
    base = trained[1]
    tokenizer = CaptionTokenizer()
    tokens = torch.tensor([tokenizer.padded(tokenizer.ids(caption)) for caption in CAPTIONS])
    latents = torch.randn(len(CAPTIONS), CHANNELS, 8, 8)
    base_loss(base, latents, tokens, noise_levels(), torch.Generator().manual_seed(0)).backward()
    assert [name for name, p in base.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_a_strange_word_stands_before_the_noun() -> None:
    tokenizer = CaptionTokenizer()
    plain = tokenizer.padded(tokenizer.ids(CAPTIONS[0]))
    found = [tokenizer.of_example(CAPTIONS[0], number) for number in range(200)]
    with_rare_token = [tokens for tokens in found if tokens != plain]
    assert 10 < len(with_rare_token) < 60
    for tokens in with_rare_token:
        assert len(tokens) == 77 and tokens[:2] + tokens[3:] == plain[:-1]


def test_what_is_shipped_is_small(trained: tuple[Autoencoder, Base], tmp_path: Path) -> None:
    pack(*trained, tmp_path / "weights.safetensors")
    assert (tmp_path / "weights.safetensors").stat().st_size < 11.4e6
