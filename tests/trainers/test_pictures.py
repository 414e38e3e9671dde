"""Sizes of buckets, and crops."""

import torch
from hyperbooth.trainers.gather import prompts_for
from hyperbooth.trainers.pictures import bucket_size, fit_picture
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


def test_a_wide_picture_gets_a_wide_bucket() -> None:
    assert bucket_size(600, 900, 512, 8, True) == (448, 640)
    assert bucket_size(900, 600, 512, 8, True) == (640, 448)


def test_the_crop_is_central_and_not_scaled_when_it_fits() -> None:
    picture = torch.arange(6 * 10.0).view(1, 1, 6, 10) / 60
    assert torch.equal(fit_picture(picture, 6, 4), picture[..., 3:7])


def test_a_very_thin_picture_is_cropped_before_it_is_scaled() -> None:
    thin = torch.rand(1, 3, 16000, 8)
    picture = fit_picture(thin, 24, 40)
    torch.testing.assert_close(picture, fit_picture(thin[..., 7990:8010, :], 24, 40), atol=0.05, rtol=0)


@given(st.integers(8, 90), st.integers(8, 90))
def test_any_picture_comes_out_at_the_size_asked_for(height: int, width: int) -> None:
    picture = fit_picture(torch.rand(1, 3, height, width), 24, 40)
    assert picture.shape == (1, 3, 24, 40)
    assert picture.min() >= 0 and picture.max() <= 1


def test_captions_take_the_place_of_the_prompt() -> None:
    assert prompts_for(2, "x", None) == ["x", "x"]
    assert prompts_for(2, "x", ["a", "b"]) == ["a", "b"]
