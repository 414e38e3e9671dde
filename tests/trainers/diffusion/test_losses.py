"""The objective against the papers' formulas, value and gradient, for every kind of model."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import reference
from hyperbooth.models.backbone.denoiser import Prediction
from hyperbooth.trainers.diffusion.losses import DenoisingLoss, min_snr, weighting
from torch import Tensor, nn


@dataclass
class Toy:
    """A network of three parameters per channel behind the sampling equations of each kind of model, in float64."""

    prediction: Prediction
    network: nn.Module
    sigma_data: float = 1.0

    def output(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.network(x)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        s, out = sigma.view(-1, 1, 1, 1), self.output(x, sigma)
        if self.prediction is Prediction.V:
            return x / (s**2 + 1) - out * s / (s**2 + 1).sqrt()
        return x - out * s

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1)
        return (1 - s) * x0 + s * noise if self.prediction is Prediction.FLOW else x0 + s * noise


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return clean, noise, torch.tensor([0.05, 0.3, 0.7, 0.98], dtype=torch.float64)


def toy(prediction: Prediction) -> Toy:
    torch.manual_seed(0)
    return Toy(prediction, nn.Conv2d(3, 3, 1).double())


def literal(model: Toy, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    output = model.output(model.add_noise(clean, noise, sigma), sigma)
    if model.prediction is Prediction.EPS:
        return reference.l_simple_eps(output, noise)
    if model.prediction is Prediction.V:
        return reference.l_simple_v(output, clean, noise, sigma)
    return reference.l_simple_flow(output, clean, noise)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_l_simple_is_the_papers_in_value_and_gradient(prediction: Prediction) -> None:
    model, (clean, noise, sigma) = toy(prediction), batch()
    ours = DenoisingLoss(denoiser=model, weighting=weighting("l_simple", 5.0))(clean, None, sigma, noise)
    ours.sum().backward()
    gradient = model.network.weight.grad.clone()
    model.network.zero_grad()
    theirs = literal(model, clean, noise, sigma)
    theirs.sum().backward()
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, model.network.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_is_the_papers(gamma: float) -> None:
    clean, noise, sigma = batch()
    for prediction, formula in ((Prediction.EPS, reference.min_snr_eps), (Prediction.V, reference.min_snr_v)):
        model = toy(prediction)
        ours = DenoisingLoss(denoiser=model, weighting=weighting("min_snr", gamma))(clean, None, sigma, noise)
        theirs = formula(literal(model, clean, noise, sigma), sigma, gamma)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


def test_debiased_is_the_papers() -> None:
    clean, noise, sigma = batch()
    for prediction in (Prediction.EPS, Prediction.FLOW):
        model = toy(prediction)
        ours = DenoisingLoss(denoiser=model, weighting=weighting("debiased", 5.0))(clean, None, sigma, noise)
        noisy = model.add_noise(clean, noise, sigma)
        with torch.no_grad():
            scale = 1 - sigma if prediction is Prediction.FLOW else torch.ones_like(sigma)
            eps = (noisy - scale.view(-1, 1, 1, 1) * model(noisy, sigma, None)) / sigma.view(-1, 1, 1, 1)
        theirs = reference.debiased_eps(reference.l_simple_eps(eps, noise), scale / sigma)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


def test_a_teachers_estimate_replaces_the_target() -> None:
    model, (clean, noise, sigma) = toy(Prediction.EPS), batch()
    other = toy(Prediction.EPS)
    with torch.no_grad():
        other.network.weight.mul_(1.5)
        loss = DenoisingLoss(denoiser=model, weighting=weighting("l_simple", 5.0))
        teacher = lambda x, level: other(x, level, None)  # noqa: E731
        ours = loss(clean, None, sigma, noise, teacher=teacher)
        noisy = model.add_noise(clean, noise, sigma)
        theirs = reference.l_simple_eps(model.output(noisy, sigma), other.output(noisy, sigma))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


def test_min_snr_of_a_flow_model_uses_its_own_signal_and_noise() -> None:
    sigma = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(min_snr(sigma, toy(Prediction.FLOW), 5.0), torch.tensor([5.0, 1.0, (1 / 9) ** 2]))


def test_a_mask_weights_positions() -> None:
    model, (clean, noise, sigma) = toy(Prediction.EPS), batch()
    loss = DenoisingLoss(denoiser=model, weighting=weighting("x0", 5.0))
    left = torch.zeros(4, 1, 5, 5)
    left[..., :2] = 1
    with torch.no_grad():
        error = (model(model.add_noise(clean, noise, sigma), sigma, None) - clean) ** 2
        expected = error[..., :2].flatten(1).mean(1)
        torch.testing.assert_close(loss(clean, None, sigma, noise, mask=left).double(), expected, rtol=1e-5, atol=1e-6)
        everywhere = loss(clean, None, sigma, noise, mask=torch.ones(4, 1, 5, 5))
        torch.testing.assert_close(everywhere, loss(clean, None, sigma, noise))
