"""Captions of a bank: each image has its own, up to the length that the header of a shard allows."""

import pytest
import torch
from hyperbooth.trainers.data.image_reader import ImageRecord
from hyperbooth.trainers.subject_bank.captions import MOST, prompts_of, require_fit


def record(name: str, caption: str = "") -> ImageRecord:
    return ImageRecord(name, torch.zeros(2, 2, 3), caption)


def test_each_has_its_own_or_the_prompt() -> None:
    records = [record("1.png", "a sks face at sea"), record("2.png"), record("3.png", "a face")]
    assert prompts_of(records, "a sks face") == ["a sks face at sea", "a sks face", "a face"]
    assert prompts_of([], "a sks face") == []


def test_a_caption_too_long_for_any_encoder_is_refused_by_name() -> None:
    prompts_of([record("1.png", "a" * 5_000)], "a sks face")
    with pytest.raises(ValueError, match=r"\b1\.png\b.*\b5001\b.*\b5000\b"):
        prompts_of([record("1.png", "a" * 5_001)], "a sks face")


def test_captions_of_a_batch_fit_into_a_shard() -> None:
    require_fit(["a" * (MOST // 2)] * 2)
    with pytest.raises(ValueError, match=rf"\bcaptions\b.*\b{MOST + 2}\b.*\b{MOST}\b.*\bsubjects_per_batch\b"):
        require_fit(["a" * (MOST // 2 + 1)] * 2)
