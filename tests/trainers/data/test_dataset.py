"""Batches: every example once per epoch, one size per batch, reproducible."""

from collections import Counter

import pytest
import torch
from hyperbooth.trainers.data.dataset import Batches, Example, Frame, Subject
from hypothesis import given
from hypothesis import strategies as st


def examples(counts: list[int]) -> list[Example]:
    return [
        Example(torch.zeros(1, 4, 2, 2 + size), None, f"{size}/{i}") for size, n in enumerate(counts) for i in range(n)
    ]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 2**32))
def test_every_example_occurs_as_often_and_sizes_do_not_mix(counts: list[int], size: int, seed: int) -> None:
    made = examples(counts)
    batches = Batches(made, size, seed)
    for start in (0, len(made)):
        seen: Counter[str] = Counter()
        for batch in (batches[b] for b in range(start, start + len(made))):
            assert len(batch) == size
            assert len({example.size for example in batch}) == 1
            seen.update(example.prompt for example in batch)
        assert seen == {example.prompt: size for example in made}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_image_alone_in_its_bucket_is_seen_as_often_as_one_among_many(size: int) -> None:
    """With batches of 4 it was seen 3.1 times as often as one among six."""
    batches = Batches(examples([6, 1, 3]), size, 0)
    seen = Counter(example.prompt for b in range(60) for example in batches[b])
    assert set(seen.values()) == {6 * size}


@given(st.integers(1, 4), st.integers(1, 5))
def test_an_epoch_shows_every_example_once_where_the_batches_fit(batches_per_epoch: int, size: int) -> None:
    made = examples([batches_per_epoch * size])
    batches = Batches(made, size, 3)
    for start in range(0, 3 * batches_per_epoch, batches_per_epoch):
        shown = [example.prompt for b in range(start, start + batches_per_epoch) for example in batches[b]]
        assert sorted(shown) == sorted(example.prompt for example in made)


def test_batch_depends_on_seed_and_number_alone() -> None:
    make = lambda seed: [[e.prompt for e in Batches(examples([5]), 2, seed)[b]] for b in range(20)]  # noqa: E731
    assert make(1) == make(1)
    assert make(1) != make(2)
    assert len({tuple(order) for order in make(1)}) > 5


def test_a_subject_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        Subject(())


def test_prompts_are_distinct_and_in_order() -> None:
    made = [Example(torch.zeros(1, 4, 2, 2), None, text) for text in ("b", "a", "b", None)]
    assert Subject(tuple(made)).prompts == ["b", "a"]


def test_a_variant_has_its_own_latent_mask_and_frame_and_the_same_text() -> None:
    frames = (Frame(9, 9, 0, 0, 8, 8), Frame(9, 9, 1, 1, 8, 8))
    example = Example(torch.rand(2, 4, 3, 3), object(), "p", torch.rand(2, 1, 3, 3), frames)
    second = example.variant(1)
    assert second.latents.shape == (1, 4, 3, 3) and torch.equal(second.latents[0], example.latents[1])
    assert second.mask is not None and torch.equal(second.mask[0], example.mask[1])
    assert second.frames == frames[1:] and second.cond is example.cond and second.prompt == "p"
    assert second.unframed().frames is None
    assert Example(torch.rand(2, 4, 3, 3), None).variant(0).frames is None
