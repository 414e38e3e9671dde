"""Buckets keep area and aspect, and crops lie where they are reported."""

import torch
from hyperbooth.trainers.data.build_dataset import prompts_for
from hyperbooth.trainers.data.resize import bucket_size, center_box, crop_and_resize, frame_of, random_box
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(8, 5000), st.integers(8, 5000), st.sampled_from([64, 128, 256, 512, 768, 1024]), st.booleans())
def test_buckets_keep_area_and_aspect_and_divide(height: int, width: int, resolution: int, bucket: bool) -> None:
    rows, columns = bucket_size(height, width, resolution, 8, bucket)
    unit = 64 if resolution >= 256 else 8
    assert rows % unit == columns % unit == 0
    assert 0.6 < rows * columns / resolution**2 < 1.6
    if not bucket:
        assert rows == columns == resolution
    elif 0.5 <= width / height <= 2:
        assert abs(columns - rows * width / height) <= unit * (1 + width / height)


def test_a_wide_image_gets_a_wide_bucket() -> None:
    assert bucket_size(600, 900, 512, 8, True) == (384, 640)
    assert bucket_size(900, 600, 512, 8, True) == (640, 384)


def test_the_crop_is_central_and_not_scaled_when_it_fits() -> None:
    image = torch.arange(6 * 10.0).view(1, 1, 6, 10) / 60
    assert torch.equal(crop_and_resize(image, (6, 4)), image[..., 3:7])


def test_a_very_thin_image_is_cropped_before_it_is_scaled() -> None:
    thin = torch.rand(1, 3, 16000, 8)
    image = crop_and_resize(thin, (24, 40))
    torch.testing.assert_close(image, crop_and_resize(thin[..., 7990:8010, :], (24, 40)), atol=0.05, rtol=0)


@given(st.integers(8, 90), st.integers(8, 90))
def test_any_image_is_resized_to_the_requested_size(height: int, width: int) -> None:
    color = torch.tensor([0.0, 0.25, 1.0]).view(1, 3, 1, 1)
    plain, noise = crop_and_resize(
        torch.cat([color.expand(1, 3, height, width), torch.rand(1, 3, height, width)]), (24, 40)
    )
    torch.testing.assert_close(plain, color[0].expand(3, 24, 40), atol=1e-5, rtol=0)
    assert noise.min() >= 0 and noise.max() <= 1


def test_captions_take_the_place_of_the_prompt() -> None:
    assert prompts_for(2, "x", None) == ["x", "x"]
    assert prompts_for(2, "x", ["a", "b"]) == ["a", "b"]


@given(st.integers(8, 3000), st.integers(8, 3000), st.sampled_from([64, 128, 256, 512, 768, 1024]))
def test_no_bucket_is_larger_than_the_square_nor_crops_more_than_it(height: int, width: int, resolution: int) -> None:
    rows, columns = bucket_size(height, width, resolution, 8, True)
    assert rows * columns <= resolution**2
    assert (columns, rows) == bucket_size(width, height, resolution, 8, True), "portrait as landscape"
    aspect, given_aspect = columns / rows, width / height
    square = min(given_aspect, 1 / given_aspect)
    assert min(aspect / given_aspect, given_aspect / aspect) >= square - 1e-6
    if resolution == 1024 and 0.5 <= given_aspect <= 2:
        assert 0.86 <= given_aspect / aspect <= 1 / 0.86


def test_at_1024_the_buckets_are_sdxls_own() -> None:
    for height, width in [(1024, 1024), (896, 1152), (832, 1216), (768, 1344), (960, 1088)]:
        assert bucket_size(height * 3, width * 3, 1024, 8, True) == (height, width)


SIDES = st.integers(8, 400)


@given(SIDES, SIDES, st.sampled_from([(64, 64), (48, 80), (80, 48)]), st.floats(0, 0.5), st.integers(0, 99))
def test_boxes_lie_inside_have_the_aspect_and_crop_no_more_than_configured(
    height: int, width: int, size: tuple[int, int], crop: float, seed: int
) -> None:
    largest = center_box(height, width, size)
    box = random_box(height, width, size, crop, torch.Generator().manual_seed(seed))
    for part in (largest, box):
        assert 0 <= part.top <= height - part.height and 0 <= part.left <= width - part.width
        assert abs(part.width / part.height / (size[1] / size[0]) - 1) <= 1 / part.height + 1 / part.width
    needed = max(size[0] / height, size[1] / width)
    assert abs(size[0] / needed - largest.height) <= 0.5 and abs(size[1] / needed - largest.width) <= 0.5
    assert box.height >= (1 - crop) * largest.height - 0.5 and box.width >= (1 - crop) * largest.width - 0.5


@given(SIDES, SIDES, st.booleans(), st.integers(0, 99))
def test_a_frame_describes_where_the_crop_lies_in_the_resized_image(h: int, w: int, mirrored: bool, seed: int) -> None:
    box = random_box(h, w, (48, 80), 0.5, torch.Generator().manual_seed(seed))
    frame = frame_of((h, w), box, (48, 80), mirrored)
    assert (frame.width, frame.height, frame.target_width, frame.target_height) == (w, h, 80, 48)
    across, down = 80 / box.width, 48 / box.height
    assert abs(frame.crop_h / down - box.top) <= 0.5 / down + 1e-6
    left = w - (box.left + box.width) if mirrored else box.left
    assert abs(frame.crop_w / across - left) <= 0.5 / across + 1e-6


def test_image_and_mask_are_cropped_alike() -> None:
    image = torch.zeros(1, 3, 90, 70)
    image[..., 30:60, 20:50] = 1
    box = random_box(90, 70, (48, 32), 0.4, torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        crop_and_resize(image, (48, 32), box)[:, :1], crop_and_resize(image[:, :1], (48, 32), box)
    )
