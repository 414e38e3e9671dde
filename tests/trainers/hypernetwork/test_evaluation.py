"""The result of an evaluation, in files and in reports."""

import re

from hyperbooth.trainers.hypernetwork.evaluation import EvalResult

RESULT = EvalResult(
    base=0.5, mean=0.4, shuffled=0.45, own=0.3, fitted=0.2, explained=0.625, explained_shuffled=-0.25
)  # fmt: skip


def test_the_keys_in_files_stay() -> None:
    assert RESULT.metadata == {
        "loss_base": 0.5, "loss_mean": 0.4, "loss_wrong": 0.45, "loss_own": 0.3, "loss_fitted": 0.2,
        "explained": 0.625, "explained_wrong": -0.25,
    }  # fmt: skip


def test_the_explained_variance_is_reported_with_a_weight_loss_only() -> None:
    with_weights, without = RESULT.describe(with_weights=True), RESULT.describe(with_weights=False)
    assert with_weights.startswith(without) and re.search(r"\bshuffled\b\D*\b0\.4500\b", without)
    assert [re.findall(r"-?[\d.]+%", text) for text in (with_weights, without)] == [["62.5%", "-25.0%"], []]
