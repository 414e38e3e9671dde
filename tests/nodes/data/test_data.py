"""Images, captions, masks and latents reach the subject through the nodes."""

from typing import Any

import pytest
import torch
from comfy_extras.nodes_dataset import ResolutionBucket
from torch import Tensor


def conditioning(value: float) -> Any:
    return [[torch.full((1, 77, 768), value), {"pooled_output": torch.full((1, 768), value)}]]


def test_stock_buckets_keep_each_image_with_its_caption(node: Any) -> None:
    sizes = [(8, 8), (6, 10), (8, 8), (6, 10), (10, 6)]
    latents = [{"samples": torch.full((1, 4, *size), float(index))} for index, size in enumerate(sizes)]
    buckets, conds = ResolutionBucket.execute(latents, [conditioning(float(i)) for i in range(5)]).result
    assert [len(bucket["samples"]) for bucket in buckets] == [2, 2, 1]
    (made,) = node("SubjectFromLatents", latents=buckets, positive=conds)
    assert sorted(example.size for example in made.examples) == sorted((4, *size) for size in sizes)
    for example in made.examples:
        assert example.latents.unique().item() == example.cond[0][0].unique().item()
        assert len(example.cond) == 1 and example.frames is None


def subject(node: Any, loaded: Any, pictures: Tensor, **inputs: list[Any]) -> Any:
    given = {
        "images": [pictures], "vae": [loaded[2]], "clip": [loaded[1]], "prompt": ["a photo of sks dog"],
        "resolution": [64], "bucket": [True], "flip": [False],
    }  # fmt: skip
    (made,) = node("Subject", **{**given, **inputs})
    return made


def test_variants_reach_the_subject_and_repeat_with_the_seed(node: Any, loaded: Any, pictures: Tensor) -> None:
    augmented = {"variants": [5], "crop": [0.3], "colour": [0.2], "augment_seed": [7]}
    first, again = (subject(node, loaded, pictures, **augmented) for _ in range(2))
    plain = subject(node, loaded, pictures)
    for example, other, whole in zip(first.examples, again.examples, plain.examples, strict=True):
        assert example.latents.shape == (5, 4, 8, 8) and len(example.frames) == 5
        assert torch.equal(example.latents, other.latents)
        torch.testing.assert_close(example.latents[0], whole.latents[0])
        assert example.frames[0] == whole.frames[0]
    different = subject(node, loaded, pictures, **{**augmented, "augment_seed": [8]})
    assert not torch.equal(first.examples[0].latents, different.examples[0].latents)


def test_an_image_without_a_caption_takes_the_prompt(node: Any, loaded: Any, pictures: Tensor) -> None:
    made = subject(node, loaded, pictures, captions=["one", "", "three"])
    assert [example.prompt for example in made.examples] == ["one", "a photo of sks dog", "three"]


def test_crop_without_variants_is_refused(node: Any, loaded: Any, pictures: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^variants .*\b1\b.*(crop|colour|color)"):
        subject(node, loaded, pictures, colour=[0.1])


def latents_with(mask: Any) -> list[dict[str, Any]]:
    return [{"samples": torch.ones(2, 4, 8, 8), "noise_mask": mask}]


COND = [[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]


def test_a_noise_mask_is_the_mask_of_the_loss(node: Any) -> None:
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, :32] = 1
    mask[1] = 1
    (made,) = node("SubjectFromLatents", latents=latents_with(mask), positive=[COND])
    first, second = (example.mask for example in made.examples)
    assert first.shape == (1, 1, 8, 8) and first[..., :4, :].all() and not first[..., 4:, :].any() and second.all()
    (made,) = node("SubjectFromLatents", latents=latents_with(mask[:1, 0]), positive=[COND])
    assert all(torch.equal(example.mask, first) for example in made.examples)
    (made,) = node("SubjectFromLatents", latents=[{"samples": torch.ones(1, 4, 8, 8)}], positive=[COND])
    assert made.examples[0].mask is None


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 64, 64), r"\bblack\b"),
        (torch.ones(3, 64, 64), r"\b3 masks\b.*\b2 latents\b"),
        (torch.full((1, 64, 64), torch.nan), r"\bNaN\b"),
    ],
)
def test_a_noise_mask_that_cannot_be_used_is_refused(node: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^positive\b.*\bnoise mask\b.*{message}"):
        node("SubjectFromLatents", latents=latents_with(mask), positive=[COND])


@pytest.mark.parametrize(
    "option",
    [
        {"area": (8, 8, 0, 0)}, {"mask": torch.ones(1, 8, 8)}, {"strength": 0.5}, {"start_percent": 0.2},
        {"end_percent": 0.8}, {"control": object()}, {"hooks": object()},
    ],
)  # fmt: skip
def test_conditioning_that_training_would_ignore_is_refused(node: Any, option: dict[str, Any]) -> None:
    cond = [[COND[0][0], {**COND[0][1], **option}]]
    with pytest.raises(ValueError, match=rf"^positive .*\b{next(iter(option))}\b"):
        node("SubjectFromLatents", latents=[{"samples": torch.ones(1, 4, 8, 8)}], positive=[cond])
    plain = [[COND[0][0], {**COND[0][1], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}]]
    node("SubjectFromLatents", latents=[{"samples": torch.ones(1, 4, 8, 8)}], positive=[plain])
