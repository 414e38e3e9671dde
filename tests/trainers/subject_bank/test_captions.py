"""Captions of a bank: each picture's own, within what a file's header holds."""

import pytest
import torch
from hyperbooth.trainers.data.image_reader import ImageRecord
from hyperbooth.trainers.subject_bank.captions import MOST, check_fit, prompts_of


def photograph(name: str, caption: str = "") -> ImageRecord:
    return ImageRecord(name, torch.zeros(2, 2, 3), caption)


def test_each_has_its_own_or_the_prompt() -> None:
    seen = [photograph("1.png", "a sks face at sea"), photograph("2.png"), photograph("3.png", "a face")]
    assert prompts_of(seen, "a sks face") == ["a sks face at sea", "a sks face", "a face"]
    assert prompts_of([], "a sks face") == []


def test_a_text_that_no_encoder_reads_is_refused_by_name() -> None:
    prompts_of([photograph("1.png", "a" * 10_000)], "a sks face")
    with pytest.raises(ValueError, match=r"the text beside 1\.png has 10001 characters; give at most 10000"):
        prompts_of([photograph("1.png", "a" * 10_001)], "a sks face")


def test_a_batch_holds_what_a_file_does() -> None:
    check_fit(["a" * (MOST // 2)] * 2)
    with pytest.raises(ValueError, match=f"have {MOST + 2} characters, .* holds {MOST}; give fewer subjects_per_batch"):
        check_fit(["a" * (MOST // 2 + 1)] * 2)
