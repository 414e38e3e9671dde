"""Batches of a hypernetwork's training."""

import pytest
from hyperbooth.trainers.engine.rng import generator_for
from hyperbooth.trainers.hypernetwork.batches import SubjectBatches

COUNTS = {4: 1, 7: 3, 2: 2, 9: 5}


def batches(batch_size: int = 3, seed: int = 0, inputs: int = 9) -> SubjectBatches:
    return SubjectBatches(
        subjects=list(COUNTS), image_counts=list(COUNTS.values()),
        input_counts=[min(inputs, count) for count in COUNTS.values()],
        theta=lambda _: pytest.fail("read"), features=lambda _: pytest.fail("read"),
        examples=lambda _: pytest.fail("read"), batch_size=batch_size, seed=seed,
    )  # fmt: skip


def test_every_subject_comes_once_per_epoch() -> None:
    """Four batches of three are three epochs of four subjects."""
    made = batches()
    drawn = [subject for batch in range(4) for subject, _ in made.draw(batch, generator_for(0, batch))[0]]
    epochs = [drawn[start : start + 4] for start in range(0, 12, 4)]
    assert all(sorted(epoch) == sorted(COUNTS) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("inputs", [1, 2, 9])
def test_another_image_of_the_subject_is_the_target(inputs: int) -> None:
    made = batches(batch_size=4, inputs=inputs)
    for batch in range(20):
        for (subject, first), (same, target) in zip(*made.draw(batch, generator_for(1, batch)), strict=True):
            assert subject == same and first < inputs and max(first, target) < COUNTS[subject]
            assert (first != target) == (COUNTS[subject] > 1)


def test_batches_depend_on_seed_and_index_alone() -> None:
    first, again, other = (batches(seed=seed).draw(2, generator_for(3)) for seed in (0, 0, 1))
    assert first == again != other
