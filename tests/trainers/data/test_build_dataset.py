"""Images become a dataset, with a VAE that is easy to check: latents are pixels, downscaled four times."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hyperbooth.trainers.data.augmentation import Augmentation
from hyperbooth.trainers.data.build_dataset import Encoders, Framing, SourceImages, build_dataset, literal, prompts_for
from hyperbooth.trainers.data.dataset import Frame
from torch import Tensor

FRAMING = Framing(resolution=32)


def encoders(seen: list[Any] | None = None) -> Encoders:
    seen = [] if seen is None else seen

    def encode_prompt(prompt: str) -> str:
        seen.append(prompt)
        return f"<{prompt}>"

    return Encoders(
        encode_image=lambda pixels: F.avg_pool2d(pixels, 4),
        encode_prompt=encode_prompt,
        latent_cell=4,
        on_progress=lambda done, total: seen.append((done, total)),
    )


def images(*sizes: tuple[int, ...], masks: list[Tensor] | None = None) -> SourceImages:
    return SourceImages([torch.rand(size) for size in sizes], [f"p{i}" for i in range(len(sizes))], masks)


def test_each_image_has_its_size_its_prompt_and_its_note() -> None:
    made = build_dataset(images((32, 32, 3), (40, 20, 3)), FRAMING, encoders())
    assert [example.size for example in made.examples] == [(3, 8, 8), (3, 11, 5)]
    assert [example.cond for example in made.examples] == ["<p0>", "<p1>"]
    assert made.unconditional == "<>"
    assert made.notes == (
        "sizes: 1 of 32 x 32, 1 of 20 x 44", "image 1: 32 x 32 -> 32 x 32", "image 2: 20 x 40 -> 20 x 44"
    )  # fmt: skip


def test_texts_are_encoded_once_and_progress_counts_every_image() -> None:
    seen: list[Any] = []
    subject = SourceImages([torch.rand(32, 32, 3)] * 3, ["same"] * 3)
    class_images = SourceImages([torch.rand(32, 32, 3)] * 2, ["class"] * 2)
    build_dataset(subject, FRAMING, encoders(seen), class_images=class_images)
    assert [entry for entry in seen if isinstance(entry, str)] == ["", "same", "class"]
    assert [entry for entry in seen if not isinstance(entry, str)] == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gray_and_transparent_images_are_converted_to_rgb(channels: int) -> None:
    image = torch.rand(32, 32, channels)
    made = build_dataset(SourceImages([image], ["p"]), FRAMING, encoders())
    expected = image.movedim(-1, 0).expand(3, -1, -1) if channels == 1 else image.movedim(-1, 0)[:3]
    torch.testing.assert_close(made.examples[0].latents[0], F.avg_pool2d(expected, 4))


def test_flip_adds_the_mirror_image() -> None:
    (example,) = build_dataset(images((32, 32, 3)), Framing(resolution=32, flip=True), encoders()).examples
    torch.testing.assert_close(example.latents[1], example.latents[0].flip(-1))


def test_small_images_are_enlarged_and_the_report_remarks_on_it() -> None:
    made = build_dataset(images((10, 10, 3)), FRAMING, encoders())
    assert made.examples[0].size == (3, 8, 8)
    assert re.search(r"\bimage 1\b.*\b10 x 10\b.*\b32 x 32\b.*\b3\.2\b", made.notes[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (images(), "^images .*no image"),
        (images((32, 32, 3), (3, 90, 3)), r"^images\b.*\bimage 2\b.*\b90 x 3\b.*\b4 x 4\b"),
        (images((32, 32, 3), masks=[]), r"^masks\b.*\b0\b.*\b1 images\b"),
        (images((32, 32, 3), masks=[torch.ones(16, 32)]), r"^masks\b.*\bmask 1\b.*\b32 x 16\b.*\b32 x 32\b"),
        (images((32, 32, 3), masks=[torch.zeros(32, 32)]), r"^masks\b.*\bmask 1\b.*\bblack\b"),
        (images((32, 32, 3), masks=[torch.full((32, 32), torch.nan)]), r"^masks\b.*\bmask 1\b.*\bNaN\b"),
        (images((32, 32, 2)), r"^images\b.*\bimage 1\b.*\b2 channels\b"),
        (SourceImages([torch.full((32, 32, 3), torch.inf)], ["p"]), r"^images\b.*\bimage 1\b.*\bNaN\b"),
    ],
)
def test_unusable_images_and_masks_are_named(given: SourceImages, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_dataset(given, FRAMING, encoders())


def test_class_images_are_checked_under_their_own_name() -> None:
    with pytest.raises(ValueError, match=r"^class_images\b.*\bimage 1\b.*\b2 x 2\b"):
        build_dataset(images((32, 32, 3)), FRAMING, encoders(), class_images=images((2, 2, 3)))


@pytest.mark.parametrize("captions", [["a"], ["a", "b", "c"]])
def test_captions_match_the_images(captions: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"^captions\b.*\b{len(captions)}\b.*\b2 images\b"):
        prompts_for(2, "p", captions)


def test_a_subject_needs_a_text() -> None:
    with pytest.raises(ValueError, match=r"^prompt .*\bempty\b"):
        prompts_for(2, "  ", None)


def test_an_image_without_a_caption_takes_the_prompt_and_one_without_either_is_refused() -> None:
    assert prompts_for(2, "p", ["a", " "]) == ["a", "p"]
    with pytest.raises(ValueError, match=r"^captions\b.*\btext 2\b.*\bprompt\b"):
        prompts_for(2, " ", ["a", " "])


def test_a_mask_that_the_crop_leaves_nothing_of_is_refused() -> None:
    mask = torch.zeros(32, 128)
    mask[:, :20] = 1
    wide = SourceImages([torch.rand(32, 128, 3)], ["p"], [mask])
    with pytest.raises(ValueError, match=r"^masks\b.*\bmask 1\b.*\b32 x 32\b.*\bbucket\b"):
        build_dataset(wide, Framing(resolution=32, bucket=False), encoders())


def test_load_images_placeholder_for_no_mask_is_no_mask() -> None:
    masked = torch.zeros(32, 32)
    masked[:16] = 1
    made = build_dataset(images((32, 32, 3), (40, 40, 3), masks=[masked, torch.zeros(64, 64)]), FRAMING, encoders())
    assert made.examples[0].mask is not None and made.examples[1].mask is None


def test_many_class_images_are_one_line_of_the_report() -> None:
    made = build_dataset(images((32, 32, 3)), FRAMING, encoders(), class_images=images(*[(32, 32, 3)] * 7))
    (own, classes) = made.notes
    assert "image 1" in own and "7 class images" in classes


def test_variants_are_encoded_one_by_one_with_their_masks_and_frames() -> None:
    seen: list[Any] = []
    mask = torch.zeros(60, 40)
    mask[10:50, 10:30] = 1
    given, augmentation = images((60, 40, 3), masks=[mask]), Augmentation(variants=6, crop=0.3, color=0.2)
    made = build_dataset(
        given,
        Framing(resolution=32, flip=True),
        encoders(seen),
        class_images=images((32, 32, 3)),
        augmentation=augmentation,
    )
    (example,) = made.examples
    assert len(example.latents) == len(example.mask) == len(example.frames) == 6
    assert len({latent.numpy().tobytes() for latent in example.latents}) == 6
    assert [entry for entry in seen if not isinstance(entry, str)] == [(i, 8) for i in range(1, 9)]
    assert len(made.class_examples[0].latents) == 2, "class images are mirrored, not augmented"
    assert any(re.search(r"\b6 variants\b.*\b30%.*\b20%.*\bmirrored\b", note) for note in made.notes)
    assert any(re.search(r"\bmasks\b.*\b1 of 1\b", note) for note in made.notes)


def test_frames_describe_the_crop() -> None:
    (wide,) = build_dataset(images((32, 64, 3)), Framing(resolution=32, bucket=False, flip=True), encoders()).examples
    assert wide.frames == (Frame(64, 32, 16, 0, 32, 32),) * 2
    (large,) = build_dataset(images((96, 64, 3)), Framing(resolution=32, bucket=False), encoders()).examples
    assert large.frames == (Frame(64, 96, 0, 8, 32, 32),)


def test_the_report_names_large_crops_and_duplicates() -> None:
    image = torch.rand(32, 64, 3)
    made = build_dataset(
        SourceImages([image, torch.rand(32, 32, 3), image.clone()], ["p"] * 3),
        Framing(resolution=32, bucket=False),
        encoders(),
    )
    assert any(re.search(r"\bsizes\b.*\b3 of 32 x 32\b", note) for note in made.notes)
    assert any(re.search(r"\bimage 1\b.*\b64 x 32\b.*\b32 x 32\b.*\b50%", note) for note in made.notes)
    assert any(re.search(r"\bimage 3\b.*\bduplicate\b.*\bimage 1\b", note) for note in made.notes)


def test_an_image_that_is_given_several_times_is_encoded_once_and_no_duplicate() -> None:
    """As kohya's folders of repeats give it."""
    encoded: list[Tensor] = []
    counted = replace(encoders(), encode_image=lambda pixels: encoded.append(pixels) or F.avg_pool2d(pixels, 4))
    repeated, other = images((32, 32, 3), (32, 48, 3)).images
    source = SourceImages([repeated, other, repeated, repeated], ["p"] * 4)
    made = build_dataset(source, FRAMING, counted)
    assert len(encoded) == 2 and len(made.examples) == 4
    assert made.examples[0].latents.equal(made.examples[3].latents)
    assert not any(note.startswith("image 3 is") for note in made.notes)


def test_variants_without_crop_or_color_are_one_variant_and_the_report_remarks_on_it() -> None:
    made = build_dataset(images((32, 32, 3)), FRAMING, encoders(), augmentation=Augmentation(variants=8))
    assert len(made.examples[0].latents) == 1
    assert any(re.search(r"\bvariants\b.*\bcrop\b.*\bcolour\b.*\b0\b", note) for note in made.notes)


def test_a_white_mask_counts_as_none() -> None:
    made = build_dataset(images((32, 32, 3), masks=[torch.ones(32, 32)]), FRAMING, encoders())
    assert made.examples[0].mask is None


@pytest.mark.parametrize(
    ("caption", "read"),
    [("name (series)", r"name \(series\)"), (r"name \(series\)", r"name \(series\)"), ("((a:1.2))", r"\(\(a:1.2\)\)")],
)
def test_brackets_of_captions_are_text(caption: str, read: str) -> None:
    assert literal(caption) == read


def masked(*masks: Tensor) -> str:
    """Return the report on images of 60 x 60 with these masks."""
    made = build_dataset(images(*[(60, 60, 3)] * len(masks), masks=list(masks)), FRAMING, encoders())
    return "\n".join(made.notes)


def test_a_mask_that_is_probably_inverted_is_doubted() -> None:
    """The stock Load Image gives 1 where a cut-out image is transparent."""
    subject = torch.zeros(60, 60)
    subject[15:45, 15:45] = 1
    plain, doubted = masked(subject), masked(subject, 1 - subject)
    assert [text.count("warning: ") for text in (plain, doubted)] == [0, 1]
    assert re.search(r"\bmask\b.*\b25%", plain)
    assert re.search(r"warning: .*\bmask 2\b.*\b0% .*\bcenter\b.*\bInvert Mask\b", doubted)
    tiny = torch.zeros(60, 60)
    tiny[28:32, 28:32] = 1
    assert re.search(r"warning: .*\bmask 1\b.*\b0\.4%", masked(tiny))


def test_a_vae_that_gives_nan_is_named_with_the_image() -> None:
    broken = replace(encoders(), encode_image=lambda pixels: F.avg_pool2d(pixels, 4) / (pixels.mean() > 0.25))
    given = SourceImages([torch.ones(32, 32, 3), torch.zeros(32, 32, 3)], ["a", "b"])
    with pytest.raises(ValueError, match=r"^vae .*image 2"):
        build_dataset(given, FRAMING, broken)
