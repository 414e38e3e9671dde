"""The loss of a batch of subjects: one value per subject, on noise that is the same for all."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hyperbooth.models.backbone.denoiser import Prediction
from hyperbooth.trainers.config import TrainingOptions
from hyperbooth.trainers.data.dataset import Example, Subject
from hyperbooth.trainers.diffusion.losses import l_simple
from hyperbooth.trainers.diffusion.objective import Objective
from hyperbooth.trainers.subject_bank.loss import MEASURED_LEVELS, BankLoss
from torch import Tensor

SIZE = (2, 3, 3)


class Blurring:
    """``x0_hat = w x`` with a weight for each sample; records its inputs."""

    prediction = Prediction.EPS
    sigma_data = 1.0
    sigmas = torch.linspace(0.1, 5.0, 100)

    def __init__(self, weights: Tensor):
        self.weights = weights
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        self.calls.append((x.detach().clone(), sigma.clone()))
        return self.weights.view(-1, 1, 1, 1) * x

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return x0 + sigma.view(-1, 1, 1, 1) * noise


def subject(seed: int, images: int = 1) -> Subject:
    latents = torch.randn(images, 1, *SIZE, generator=torch.Generator().manual_seed(seed))
    return Subject(tuple(Example(latent, None, "a sks face") for latent in latents))


def loss(subjects: list[Subject], weights: Tensor | None = None, seed: int = 0, **options: Any) -> BankLoss:
    denoiser = Blurring(torch.full((len(subjects),), 0.5) if weights is None else weights)
    objective = Objective(
        denoiser=denoiser,
        condition=lambda examples: len(examples),
        to_model=lambda latents: latents,
        weighting=l_simple,
    )
    return BankLoss(objective=objective, subjects=subjects, options=TrainingOptions(**options), seed=seed)


SUBJECTS = [subject(1), subject(2, images=3), subject(3)]


def test_noise_and_noise_level_are_the_same_for_all() -> None:
    """Without its image, every subject has the same input."""
    made = loss([subject(1), subject(2), subject(3)], noise_offset=0.3)
    for batch in range(3):
        next(made(batch))
    shown = made.objective.denoiser.calls
    for x, sigma in shown:
        clean = torch.cat([one.examples[0].latents for one in made.subjects])
        noise = (x - clean) / sigma.view(-1, 1, 1, 1)
        assert sigma.unique().numel() == 1 and torch.allclose(noise, noise[:1].expand_as(noise), atol=1e-5)
    assert len({sigma[0].item() for _, sigma in shown}) == 3, "and another at every step"


def test_the_rest_of_the_batch_changes_nothing() -> None:
    batched = loss(SUBJECTS)
    for batch in range(4):
        each = next(batched(batch))
        for i, one in enumerate(SUBJECTS):
            assert torch.allclose(next(loss([one])(batch)), each[i : i + 1])
    assert torch.allclose(batched.measured(), torch.cat([loss([one]).measured() for one in SUBJECTS]))


def test_the_gradient_of_each_is_its_own() -> None:
    weights = torch.tensor([0.1, 0.5, 2.0], requires_grad=True)
    next(loss(SUBJECTS, weights)(0)).sum().backward()
    for i, one in enumerate(SUBJECTS):
        alone = weights.detach()[i : i + 1].clone().requires_grad_()
        next(loss([one], alone)(0)).sum().backward()
        assert torch.allclose(weights.grad[i], alone.grad[0])


def test_every_image_of_a_subject_is_used() -> None:
    """An image is drawn once in each epoch of its subject, however many images the others have."""
    made = loss(SUBJECTS)
    for batch in range(6):
        next(made(batch))
    clean = [torch.cat([e.latents for e in one.examples]) for one in SUBJECTS]
    noise = [(x[0] - clean[0][0]) for x, _ in made.objective.denoiser.calls]
    seen = [((x[1] - n - clean[1]).flatten(1).norm(dim=1).argmin().item())
            for (x, _), n in zip(made.objective.denoiser.calls, noise, strict=True)]  # fmt: skip
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_a_measurement_differs_only_as_the_model_does() -> None:
    made = loss(SUBJECTS)
    assert made.measured().equal(made.measured()) and made.measured().shape == (3,)
    assert len(made.objective.denoiser.calls) == 3 * MEASURED_LEVELS
    assert not loss(SUBJECTS, seed=1).measured().equal(made.measured())
    assert (loss(SUBJECTS, torch.ones(3)).measured() != made.measured()).all()


def test_a_measurement_encodes_its_prompts_once() -> None:
    calls: list[int] = []
    made = loss(SUBJECTS)
    objective = replace(made.objective, condition=lambda examples: calls.append(len(examples)))
    BankLoss(objective=objective, subjects=SUBJECTS, options=TrainingOptions(), seed=0).measured()
    assert calls == [3]


def test_latents_of_several_sizes_are_refused() -> None:
    other = Subject((Example(torch.zeros(1, 2, 4, 4), None, "a"),))
    with pytest.raises(ValueError, match=r"latents.*\(2, 3, 3\), \(2, 4, 4\)"):
        loss([subject(1), other])
