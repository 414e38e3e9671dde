"""Test the repository's base: it draws the prompted scenes, and different people."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tools.small_world.base.checkpoint import WEIGHTS
from tools.small_world.base.model import Loaded, load, sample
from tools.small_world.oracle.scores import Judge
from tools.small_world.oracle.trained import kept
from tools.small_world.scene.task import CAPTIONS, CLASS_PROMPT, REFERENCES


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tmp_path_factory.mktemp("world") / "small_world.safetensors")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(kept(), REFERENCES)


def test_it_is_small() -> None:
    assert WEIGHTS.stat().st_size < 12e6


def test_it_draws_the_prompted_scene(base: Any, judge: Judge) -> None:
    images = sample(base, [caption for caption in CAPTIONS for _ in range(6)], seed=0).unflatten(0, (-1, 6))
    found = {c: judge.prompt_fidelity(p, c) for c, p in zip(CAPTIONS, images, strict=True)}
    assert sum(found.values()) / len(found) > 0.85, found


def test_seeds_give_different_people(base: Any, judge: Judge) -> None:
    assert judge.people_spread(sample(base, [CLASS_PROMPT] * 32, seed=1)) > 0.8


@torch.inference_mode()
def test_the_end_of_a_text_tells_strange_words_apart(base: Any) -> None:
    """The difference is at least half that of an expression, which prior preservation needs."""

    def end(text: str) -> torch.Tensor:
        return base.clip.encode_from_tokens(base.clip.tokenize(text))[0, 10:]

    class_end = end(CLASS_PROMPT)
    smiling = (end(f"{CLASS_PROMPT}, smiling") - class_end).norm()
    for one, other in (("a sks face", CLASS_PROMPT), ("a sks face", "a zwx face")):
        assert (end(one) - end(other)).norm() > smiling / 2


def test_a_seed_gives_the_same_picture_again(base: Any, tmp_path: Path) -> None:
    first, second = (sample(base, [CAPTIONS[0]], seed=5, steps=3) for _ in range(2))
    assert torch.equal(first, second)
