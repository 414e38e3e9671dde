"""The papers' formulas in float64, literal, and slow and plain on purpose."""

import torch
from torch import Tensor


def lora(weight: Tensor, up: Tensor, down: Tensor, alpha: float) -> Tensor:
    """LoRA (2106.09685, eq. 3): ``W' = W + (alpha / r) B A``."""
    return weight.double() + alpha / down.shape[0] * (up.double() @ down.double())


def l_simple_eps(predicted: Tensor, noise: Tensor) -> Tensor:
    """DDPM (2006.11239, eq. 14): ``||eps - eps_theta||^2``, mean over a sample's values."""
    return ((noise.double() - predicted.double()) ** 2).flatten(1).mean(1)


def l_simple_v(predicted: Tensor, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """2202.00512: ``||v - v_theta||^2`` with ``v = alpha eps - s x0``, alpha^2 + s^2 = 1 and s / alpha = sigma."""
    scale = sigma.double().view(-1, *[1] * (clean.ndim - 1))
    alpha, s = 1 / (1 + scale**2).sqrt(), scale / (1 + scale**2).sqrt()
    target = alpha * noise.double() - s * clean.double()
    return ((target - predicted.double()) ** 2).flatten(1).mean(1)


def l_simple_flow(predicted: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """Rectified flow (2403.03206, eq. 13): ``||v_theta - (eps - x0)||^2``."""
    return ((predicted.double() - (noise.double() - clean.double())) ** 2).flatten(1).mean(1)


def min_snr_eps(loss_on_eps: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """Min-SNR (2303.09556, eq. 9) on eps: ``min(snr, gamma) / snr``, snr = 1 / sigma^2."""
    snr = 1 / sigma.double() ** 2
    return loss_on_eps * torch.minimum(snr, torch.tensor(gamma, dtype=torch.float64)) / snr


def min_snr_v(loss_on_v: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """The same on v: ``min(snr, gamma) / (snr + 1)``."""
    snr = 1 / sigma.double() ** 2
    return loss_on_v * torch.minimum(snr, torch.tensor(gamma, dtype=torch.float64)) / (snr + 1)


def debiased_eps(loss_on_eps: Tensor, signal_to_noise: Tensor) -> Tensor:
    """Debiased estimation (2310.08442) on eps: ``1 / sqrt(snr)``, with ``sqrt(snr) = alpha / sigma``."""
    return loss_on_eps / signal_to_noise.double()


def full(weight: Tensor, diff: Tensor) -> Tensor:
    """Fine-tuning of every value: ``W' = W + D``."""
    return weight.double() + diff.double()


def lidb(weight: Tensor, a_aux: Tensor, a_train: Tensor, b_train: Tensor, b_aux: Tensor) -> Tensor:
    """LiDB (2307.06949, section 4.1): ``W' = W + A_aux A_train B_train B_aux``."""
    return weight.double() + a_aux.double() @ a_train.double() @ b_train.double() @ b_aux.double()


def para(weight: Tensor, basis: Tensor) -> Tensor:
    """PaRa (2406.05641, eq. 3): ``B = Q R``, ``W' = W - Q Q^T W``."""
    q, _ = torch.linalg.qr(basis.double())
    return weight.double() - q @ q.T @ weight.double()
