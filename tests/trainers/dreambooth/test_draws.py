"""Draws, loss and cached activations of a batch, on a denoiser that records what it is given."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hyperbooth.models.backbone.denoiser import Prediction
from hyperbooth.models.hollowed_net.network import HollowedNetwork, Span
from hyperbooth.trainers.config import TrainingOptions
from hyperbooth.trainers.data.dataset import Example, Subject
from hyperbooth.trainers.diffusion.losses import l_simple
from hyperbooth.trainers.diffusion.objective import Objective
from hyperbooth.trainers.dreambooth.draws import DrawSampler, micro_batches
from hyperbooth.trainers.dreambooth.hollowed_activations import DreamBoothActivations
from hyperbooth.trainers.dreambooth.loss import DreamBoothLoss
from hyperbooth.trainers.dreambooth.validation import DIVERGENCE_LEVELS, VALIDATION_LEVELS, ValidationLoss
from torch import Tensor, nn

OPTIONS = TrainingOptions(prior_mode="prediction", caption_dropout=0.5, noise_offset=0.1)


class Denoiser:
    """``x0_hat`` of one linear block; records its inputs."""

    prediction = Prediction.EPS
    sigma_data = 1.0
    sigmas = torch.linspace(0.1, 5.0, 100)

    def __init__(self) -> None:
        self.block, self.inputs = nn.Linear(4, 4, bias=False), []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        self.inputs.append((x.detach().clone(), sigma.clone()))
        return self.block(x)

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return x0 + sigma.view(-1, 1, 1, 1) * noise


def subject(images: int = 5) -> Subject:
    latents = torch.randn(images, 2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    examples = tuple(Example(variants, f"cond {i}", f"prompt {i}") for i, variants in enumerate(latents))
    return Subject(examples, unconditional="empty", class_cond="class", class_prompt="a dog")


def sampler(**changes: Any) -> DrawSampler:
    settings = {"subject": subject(), "options": OPTIONS, "sigmas": Denoiser.sigmas, "batch_size": 3, "seed": 7}
    return DrawSampler(**settings | changes)


def loss(weighting: Any = l_simple, **changes: Any) -> DreamBoothLoss:
    objective = Objective(
        denoiser=Denoiser(), condition=lambda examples: len(examples), to_model=lambda x: x, weighting=weighting
    )
    return DreamBoothLoss(objective=objective, draws=sampler(), **changes)


def test_draws_depend_on_seed_and_batch_alone() -> None:
    ahead = [list(sampler().terms(batch)) for batch in (4, 0, 4)]
    for a, b in zip(ahead[0], ahead[2], strict=True):
        assert torch.equal(a.draw.noise, b.draw.noise) and torch.equal(a.draw.sigma, b.draw.sigma)
        assert [e.prompt for e in a.draw.examples] == [e.prompt for e in b.draw.examples]
    for other in (ahead[1], list(sampler(seed=8).terms(4))):
        assert not torch.equal(ahead[0][0].draw.noise, other[0].draw.noise)


def test_the_terms_are_the_subject_and_the_prior_with_draws_of_their_own() -> None:
    own, prior = sampler(options=replace(OPTIONS, prior_weight=0.5)).terms(3)
    assert (own.weight, own.by_teacher, own.draw.name) == (1.0, False, "3.2")
    assert (prior.weight, prior.by_teacher, prior.draw.name) == (0.5, True, "3.3")
    assert {example.cond for example in prior.draw.examples} == {"class"}
    assert not torch.equal(own.draw.noise, prior.draw.noise)
    assert len(list(sampler(options=replace(OPTIONS, prior_mode="none")).terms(3))) == 1


def test_caption_dropout_replaces_prompts_of_the_subject_only() -> None:
    dropped = [
        example.prompt == "" and example.cond == "empty"
        for batch in range(20)
        for example in next(sampler().terms(batch)).draw.examples
    ]
    assert 0.3 < sum(dropped) / len(dropped) < 0.7
    assert all(example.prompt for batch in range(20) for example in list(sampler().terms(batch))[1].draw.examples)


def test_the_largest_sample_is_single_and_keeps_its_prompt() -> None:
    big = Example(torch.randn(1, 3, 4, 4), "big", "a big one")
    made = sampler(subject=replace(subject(), examples=(*subject().examples, big)))
    (example,) = next(made.of_largest().terms(0)).draw.examples
    assert example.prompt == "a big one"


def test_micro_batches_cover_the_draw_and_are_single_if_prompts_need_several_passes() -> None:
    draw = next(sampler().terms(0)).draw
    assert [len(part.examples) for part in micro_batches(draw, 2)] == [2, 1]
    assert [len(part.examples) for part in micro_batches(draw, 1, lambda examples: len(examples))] == [3]
    parts = list(micro_batches(draw, 1, lambda examples: (1, 2)))
    assert [part.start for part in parts] == [0, 1, 2]
    assert torch.equal(torch.cat([part.noise for part in parts]), draw.noise)


@pytest.mark.parametrize("count", [1, 2])
def test_activations_are_of_the_same_inputs_as_the_loss_and_need_no_loss(count: int) -> None:
    def no_loss(*_: Any) -> Tensor:
        raise AssertionError("a loss was computed")

    trained, recorded = loss(separate_teacher=True), loss(no_loss, separate_teacher=True)
    list(trained(2))
    own, teacher, prior = trained.objective.denoiser.inputs
    denoiser = recorded.objective.denoiser
    source = DreamBoothActivations.for_loss(recorded, micro_batches=count)
    found = dict(source.record_batch(2, HollowedNetwork([Span([denoiser.block])])))
    assert list(found) == source.sample_names(2) == ["2.2", "2.3", "2.3.teacher"]
    given = [torch.cat(x) for x in zip(*denoiser.inputs, strict=True)]
    expected = [torch.cat(x) for x in zip(own, prior, teacher, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
    for (x, _), activations in zip((own, prior, teacher), found.values(), strict=True):
        torch.testing.assert_close(activations[0][0], denoiser.block(x).detach())
        assert not activations[0][0].requires_grad


def test_the_loss_is_the_same_in_micro_batches() -> None:
    whole = loss()
    terms = [term.item() for term in whole(1)]
    parts = [term.item() for term in replace(whole, micro_batches=3)(1)]
    assert len(terms) == 2 and len(parts) == 6
    assert sum(parts) == pytest.approx(sum(terms), rel=1e-5)


def test_the_validation_loss_repeats_and_its_divergence_check_is_shorter() -> None:
    made, examples = loss(), subject().examples
    validation = ValidationLoss(objective=made.objective, noise_levels=OPTIONS.noise_levels, seed=0)
    assert validation(examples[:2]) == validation(examples[:2]) != validation(examples[1:3])
    made.objective.denoiser.inputs.clear()
    validation(examples)
    assert len(made.objective.denoiser.inputs) == 4 * VALIDATION_LEVELS, "the first four images"
    validation.first_image(examples)
    assert len(made.objective.denoiser.inputs) == 4 * VALIDATION_LEVELS + DIVERGENCE_LEVELS
