"""The scores equal their definitions, computed pair by pair in float64."""

import math

import pytest
import torch
from hyperbooth.models.metrics import scores
from torch import Tensor


def embeddings(count: int, seed: int) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    return (sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt((a * a).sum()) / math.sqrt((b * b).sum())).item()


SAMPLES, REAL = embeddings(5, 0), embeddings(3, 1)


def test_fidelity_is_the_mean_over_all_pairs() -> None:
    pairs = [cosine(a, b) for a in SAMPLES for b in REAL]
    assert scores.subject_fidelity(SAMPLES, REAL) == pytest.approx(sum(pairs) / 15, abs=1e-6)
    assert scores.prior_preservation(SAMPLES, REAL) == scores.subject_fidelity(SAMPLES, REAL)
    assert scores.prompt_fidelity(SAMPLES, REAL[:1]) == pytest.approx(
        sum(cosine(a, REAL[0]) for a in SAMPLES) / 5, abs=1e-6
    )


def test_an_image_makes_no_pair_with_itself() -> None:
    pairs = [cosine(REAL[i], REAL[j]) for i in range(3) for j in range(3) if i != j]
    assert scores.ceiling(REAL) == pytest.approx(sum(pairs) / 6, abs=1e-6)
    assert scores.diversity(REAL) == pytest.approx(1 - sum(pairs) / 6, abs=1e-6)
    assert scores.ceiling(REAL[:1]) is None
    with pytest.raises(ValueError, match=r"\bone image\b.*\btwo\b"):
        scores.diversity(REAL[:1])


def test_equal_images_have_no_diversity() -> None:
    same = SAMPLES[:1].expand(4, -1)
    assert scores.diversity(same) == pytest.approx(0, abs=1e-6)
    assert scores.subject_fidelity(same, 3 * same) == pytest.approx(1, abs=1e-6)


def test_nan_and_zero_embeddings_are_found() -> None:
    assert scores.all_finite(SAMPLES)
    assert not scores.all_finite(torch.full((2, 3), torch.nan))
    assert not scores.all_finite(torch.zeros(2, 3))
