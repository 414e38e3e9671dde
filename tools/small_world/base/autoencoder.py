"""Define the world's autoencoder: TAESD's structure (ComfyUI's `comfy.taesd`) with fewer channels and blocks.

ComfyUI supports one size of TAESD. `widened` pads the state dict with zeros to that size: a missing channel becomes a
zero channel, and of a missing block only its ReLU remains. The stock VAE loads it, with the same outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CHANNELS = 16
"""Channels of a latent, whose side is an eighth of the image's."""
FULL, HALF, REST = 16, 32, 64
"""Channels at full resolution, at half, and below."""
MOMENTUM = 0.02
"""Momentum of the running statistics."""


class Convolution(nn.Conv2d):
    """Apply a convolution, then batch normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.normal = nn.BatchNorm2d(channels, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        return self.normal(super().forward(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of one equivalent convolution."""
        normal = self.normal
        scale = normal.weight / (normal.running_var + normal.eps).sqrt()
        bias = (self.bias - normal.running_mean) * scale + normal.bias
        return self.weight * scale[:, None, None, None], bias


class Block(nn.Module):
    """Compute ``relu(f(x) + x)`` with three convolutions, under TAESD's names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convolutions = [Convolution(channels) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        nn.init.zeros_(convolutions[2].normal.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def _down(channels: int, to: int) -> nn.Conv2d:
    return nn.Conv2d(channels, to, 3, stride=2, padding=1, bias=False)


def _up(channels: int, to: int) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2), nn.Conv2d(channels, to, 3, padding=1, bias=False)]


def _blocks(channels: int, learned: int, all: int = 3) -> list[nn.Module]:
    return [Block(channels) for _ in range(learned)] + [nn.ReLU() for _ in range(all - learned)]


class SoftClamp(nn.Module):
    """Compute ``3 tanh(x / 3)``, the first layer of TAESD's decoder."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class Autoencoder(nn.Module):
    """Map images [batch, 3, height, width] in [0, 1] to latents [batch, CHANNELS, height / 8, width / 8] and back.

    Each channel of a latent has mean 0 and variance 1 over the images of the world; these are the running
    statistics of training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taesd_encoder = nn.Sequential(
            nn.Conv2d(3, FULL, 3, padding=1), *_blocks(FULL, 0, 1),
            _down(FULL, HALF), *_blocks(HALF, 0),
            _down(HALF, REST), *_blocks(REST, 3),
            _down(REST, REST), *_blocks(REST, 3),
            nn.Conv2d(REST, CHANNELS, 3, padding=1),
        )  # fmt: skip
        self.normal = nn.BatchNorm2d(CHANNELS, affine=False, momentum=MOMENTUM)
        self.taesd_decoder = nn.Sequential(
            SoftClamp(), nn.Conv2d(CHANNELS, REST, 3, padding=1), nn.ReLU(),
            *_blocks(REST, 3), *_up(REST, REST), *_blocks(REST, 3), *_up(REST, HALF), *_blocks(HALF, 2),
            *_up(HALF, FULL), *_blocks(FULL, 0, 1), nn.Conv2d(FULL, 3, 3, padding=1),
        )  # fmt: skip

    def encode(self, images: Tensor) -> Tensor:
        return self.normal(self.taesd_encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        return self.taesd_decoder(latents)


@torch.no_grad()
def shipped(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Return the weights, with every normalization folded into the convolution before it."""
    state = {name: t.clone() for name, t in autoencoder.state_dict().items() if "normal." not in name}
    for name, layer in autoencoder.named_modules():
        if isinstance(layer, Convolution):
            state[f"{name}.weight"], state[f"{name}.bias"] = layer.folded()
    normal = autoencoder.normal
    deviation = (normal.running_var + normal.eps).sqrt()
    last = f"taesd_encoder.{len(autoencoder.taesd_encoder) - 1}"
    state[f"{last}.weight"] /= deviation[:, None, None, None]
    state[f"{last}.bias"] = (state[f"{last}.bias"] - normal.running_mean) / deviation
    return state


def widened(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict padded with zeros to ComfyUI's TAESD."""
    from comfy.taesd.taesd import TAESD

    full = {name: torch.zeros_like(t) for name, t in TAESD(latent_channels=CHANNELS).state_dict().items()}
    full["vae_scale"].fill_(1)
    for name, tensor in state.items():
        full[name][tuple(slice(n) for n in tensor.shape)] = tensor
    return full
