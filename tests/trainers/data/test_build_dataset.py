"""Pictures to a subject, with a VAE that is easy to check: latents are pixels, four times smaller."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hyperbooth.trainers.data.augmentation import Augmentation
from hyperbooth.trainers.data.build_dataset import Encoders, Framing, SourceImages, build_dataset, prompts_for
from hyperbooth.trainers.data.dataset import Frame
from torch import Tensor

FRAMING = Framing(resolution=32)


def tools(seen: list[Any] | None = None) -> Encoders:
    seen = [] if seen is None else seen

    def embed(prompt: str) -> str:
        seen.append(prompt)
        return f"<{prompt}>"

    return Encoders(lambda pixels: F.avg_pool2d(pixels, 4), embed, 4, lambda done, total: seen.append((done, total)))


def pictures(*sizes: tuple[int, ...], masks: list[Tensor] | None = None) -> SourceImages:
    return SourceImages([torch.rand(size) for size in sizes], [f"p{i}" for i in range(len(sizes))], masks)


def test_each_picture_has_its_size_its_prompt_and_its_note() -> None:
    made = build_dataset(pictures((32, 32, 3), (40, 20, 3)), None, FRAMING, tools())
    assert [example.size for example in made.examples] == [(3, 8, 8), (3, 11, 5)]
    assert [example.cond for example in made.examples] == ["<p0>", "<p1>"]
    assert made.unconditional == "<>"
    assert made.notes == (
        "sizes: 1 of 32 x 32, 1 of 20 x 44", "image 1: 32 x 32 -> 32 x 32", "image 2: 20 x 40 -> 20 x 44"
    )  # fmt: skip


def test_texts_are_encoded_once_and_progress_counts_every_picture() -> None:
    seen: list[Any] = []
    subject = SourceImages([torch.rand(32, 32, 3)] * 3, ["same"] * 3)
    build_dataset(subject, SourceImages([torch.rand(32, 32, 3)] * 2, ["class"] * 2), FRAMING, tools(seen))
    assert [entry for entry in seen if isinstance(entry, str)] == ["", "same", "class"]
    assert [entry for entry in seen if not isinstance(entry, str)] == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_and_transparent_pictures_are_taken_as_rgb(channels: int) -> None:
    image = torch.rand(32, 32, channels)
    made = build_dataset(SourceImages([image], ["p"]), None, FRAMING, tools())
    expected = image.movedim(-1, 0).expand(3, -1, -1) if channels == 1 else image.movedim(-1, 0)[:3]
    torch.testing.assert_close(made.examples[0].latents[0], F.avg_pool2d(expected, 4))


def test_flip_adds_the_mirror_image() -> None:
    (example,) = build_dataset(pictures((32, 32, 3)), None, Framing(32, True, True), tools()).examples
    torch.testing.assert_close(example.latents[1], example.latents[0].flip(-1))


def test_small_pictures_are_enlarged_and_the_report_says_so() -> None:
    made = build_dataset(pictures((10, 10, 3)), None, FRAMING, tools())
    assert made.examples[0].size == (3, 8, 8)
    assert "enlarged 3.2 times" in made.notes[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pictures(), "images holds no image"),
        (pictures((32, 32, 3), (3, 90, 3)), "images: image 2 is 90 x 3 pixels, smaller than one latent cell"),
        (pictures((32, 32, 3), masks=[]), "masks holds 0 for 1 images"),
        (pictures((32, 32, 3), masks=[torch.ones(16, 32)]), "mask 1 is 32 x 16, its image 32 x 32"),
        (pictures((32, 32, 3), masks=[torch.zeros(32, 32)]), "mask 1 is empty"),
        (pictures((32, 32, 3), masks=[torch.full((32, 32), torch.nan)]), "mask 1 holds NaN"),
        (pictures((32, 32, 2)), "image 1 has 2 channels"),
        (SourceImages([torch.full((32, 32, 3), torch.inf)], ["p"]), "image 1 holds NaN or infinite"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(given: SourceImages, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_dataset(given, None, FRAMING, tools())


def test_class_images_are_checked_under_their_own_name() -> None:
    with pytest.raises(ValueError, match="class_images: image 1 is 2 x 2"):
        build_dataset(pictures((32, 32, 3)), pictures((2, 2, 3)), FRAMING, tools())


@pytest.mark.parametrize("captions", [["a"], ["a", "b", "c"]])
def test_captions_match_the_images(captions: list[str]) -> None:
    with pytest.raises(ValueError, match=f"captions holds {len(captions)} texts for 2 images"):
        prompts_for(2, "p", captions)


def test_a_subject_needs_a_text() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        prompts_for(2, "  ", None)


def test_a_picture_without_a_caption_takes_the_prompt_and_one_without_either_is_refused() -> None:
    assert prompts_for(2, "p", ["a", " "]) == ["a", "p"]
    with pytest.raises(ValueError, match="captions: text 2 is empty, and so is prompt"):
        prompts_for(2, " ", ["a", " "])


def test_a_mask_that_the_crop_leaves_nothing_of_is_refused() -> None:
    mask = torch.zeros(32, 128)
    mask[:, :20] = 1
    wide = SourceImages([torch.rand(32, 128, 3)], ["p"], [mask])
    with pytest.raises(ValueError, match="nothing of mask 1 is left after cropping its picture to 32 x 32"):
        build_dataset(wide, None, Framing(32, bucket=False), tools())


def test_load_images_stand_in_for_no_mask_means_everything_counts() -> None:
    masked = torch.zeros(32, 32)
    masked[:16] = 1
    made = build_dataset(
        pictures((32, 32, 3), (40, 40, 3), masks=[masked, torch.zeros(64, 64)]), None, FRAMING, tools()
    )
    assert made.examples[0].mask is not None and made.examples[1].mask is None


def test_many_class_images_are_one_line_of_the_report() -> None:
    made = build_dataset(pictures((32, 32, 3)), pictures(*[(32, 32, 3)] * 7), FRAMING, tools())
    assert made.notes == ("image 1: 32 x 32 -> 32 x 32", "7 class images: 32 x 32 -> 32 x 32")


def test_versions_are_encoded_one_by_one_with_their_masks_and_frames() -> None:
    seen: list[Any] = []
    mask = torch.zeros(60, 40)
    mask[10:50, 10:30] = 1
    given, augmentation = pictures((60, 40, 3), masks=[mask]), Augmentation(6, 0.3, 0.2)
    made = build_dataset(given, pictures((32, 32, 3)), Framing(32, True, True), tools(seen), augmentation=augmentation)
    (example,) = made.examples
    assert len(example.latents) == len(example.mask) == len(example.frames) == 6
    assert len({latent.numpy().tobytes() for latent in example.latents}) == 6
    assert [entry for entry in seen if not isinstance(entry, str)] == [(i, 8) for i in range(1, 9)]
    assert len(made.class_examples[0].latents) == 2, "class images are mirrored, not augmented"
    assert (
        "6 versions of each image: cropped by up to 30%, colours changed by up to 20%, every second one mirrored"
        in (made.notes)
    )
    assert "masks: 1 of 1 images" in made.notes


def test_frames_say_what_was_cropped() -> None:
    (wide,) = build_dataset(pictures((32, 64, 3)), None, Framing(32, False, True), tools()).examples
    assert wide.frames == (Frame(64, 32, 16, 0, 32, 32),) * 2
    (large,) = build_dataset(pictures((96, 64, 3)), None, Framing(32, False, False), tools()).examples
    assert large.frames == (Frame(64, 96, 0, 8, 32, 32),)


def test_the_report_names_what_was_cut_away_and_what_is_there_twice() -> None:
    image = torch.rand(32, 64, 3)
    made = build_dataset(
        SourceImages([image, torch.rand(32, 32, 3), image.clone()], ["p"] * 3), None, Framing(32, False), tools()
    )
    assert "sizes: 3 of 32 x 32" in made.notes
    assert any(note.startswith("image 1: 64 x 32 -> 32 x 32 (the crop cuts away 50%") for note in made.notes)
    assert "image 3 is the same picture as image 1, which so counts twice" in made.notes


def test_variants_without_crop_or_colour_are_one_version_and_the_report_says_so() -> None:
    made = build_dataset(pictures((32, 32, 3)), None, FRAMING, tools(), augmentation=Augmentation(8))
    assert len(made.examples[0].latents) == 1
    assert "variants has no effect: crop and colour are 0" in made.notes


def test_a_white_mask_counts_as_none() -> None:
    made = build_dataset(pictures((32, 32, 3), masks=[torch.ones(32, 32)]), None, FRAMING, tools())
    assert made.examples[0].mask is None
