"""Random variants of an image: reproducible, within bounds, mask and image alike."""

from dataclasses import replace

import pytest
import torch
from hyperbooth.trainers.data.augmentation import Augmentation, View, draw_views
from hyperbooth.trainers.data.resize import Box, center_box
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPE, SIZE = (60, 90), (32, 48)
WHITE = torch.ones(1, 3, *SHAPE)
FULL = Augmentation(variants=8, crop=0.4, color=0.3, seed=5)


def image(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_without_augmentation_the_variants_are_the_image_and_its_mirror_image() -> None:
    center = center_box(*SHAPE, SIZE)
    assert draw_views(SHAPE, SIZE, Augmentation(), flip=False, index=0) == [View(center)]
    assert draw_views(SHAPE, SIZE, Augmentation(variants=8), flip=True, index=0) == [
        View(center),
        View(center, mirrored=True),
    ]


def test_the_first_variant_is_the_image_and_half_are_mirrored() -> None:
    drawn = draw_views(SHAPE, SIZE, FULL, flip=True, index=0)
    assert drawn[0] == View(center_box(*SHAPE, SIZE))
    assert sum(view.mirrored for view in drawn) == 4
    assert not any(view.mirrored for view in draw_views(SHAPE, SIZE, FULL, flip=False, index=0))
    assert len({view.box for view in drawn}) > 4


def test_variants_depend_on_seed_image_and_number_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = draw_views(SHAPE, SIZE, FULL, flip=True, index=3)
    torch.manual_seed(2)
    assert draw_views(SHAPE, SIZE, FULL, flip=True, index=3) == first
    assert draw_views(SHAPE, SIZE, replace(FULL, variants=12), flip=True, index=3)[:8] == first, (
        "more variants, same start"
    )
    assert draw_views(SHAPE, SIZE, FULL, flip=True, index=4) != first
    assert draw_views(SHAPE, SIZE, replace(FULL, seed=6), flip=True, index=3) != first
    torch.random.set_rng_state(before)
    for view in first:
        view.render(image(), SIZE)
    assert torch.equal(torch.random.get_rng_state(), before), "the global random state is unchanged"


@settings(deadline=None)
@given(st.floats(0.01, 0.5), st.integers(0, 50))
def test_color_factors_stay_within_their_bounds(strength: float, seed: int) -> None:
    augmentation = Augmentation(variants=3, color=strength, seed=seed)
    for view in draw_views(SHAPE, SIZE, augmentation, flip=False, index=0)[1:]:
        assert view.box == center_box(*SHAPE, SIZE) and view.color is not None
        assert all(abs(factor - 1) <= strength for factor in view.color[:3])
        white, black, shown = view.render(torch.cat([WHITE, 1 - WHITE, image(seed)]), SIZE)
        expected = torch.full((3, *SIZE), min(1.0, view.color[0]))
        torch.testing.assert_close(white, expected, atol=1e-3, rtol=0)
        assert torch.equal(black, torch.zeros(3, *SIZE)) and shown.min() >= 0 and shown.max() <= 1


def test_each_color_factor_has_its_effect() -> None:
    box, gray = center_box(*SIZE, SIZE), torch.full((1, 3, *SIZE), 0.4)
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1).expand(1, 3, *SIZE)

    def shown(pixels: torch.Tensor, *color: float) -> list[float]:
        return View(box, color=tuple(map(float, color))).render(pixels, SIZE)[0, :, 0, 0].tolist()

    assert shown(red, 1, 1, 1, 0) == pytest.approx([0.8, 0.2, 0.2], abs=1e-5)
    assert shown(gray, 1.5, 1, 1, 0) == pytest.approx([0.6] * 3, abs=1e-5)
    assert shown(gray, 1, 1.5, 1, 0) == pytest.approx([0.4] * 3, abs=1e-5)
    half = shown(red, 1, 1, 0.5, 0)
    assert half[0] - half[1] == pytest.approx(0.3, abs=1e-5)
    turned = shown(red, 1, 1, 1, 0.3)
    assert turned[1] > 0.3 and turned[0] == pytest.approx(0.8, abs=1e-5) and turned[2] == pytest.approx(0.2, abs=1e-5)


def test_the_mask_is_cropped_and_mirrored_with_its_image_and_its_values_are_kept() -> None:
    mask = torch.zeros(1, 1, *SHAPE)
    mask[..., 20:40, 10:30] = 1
    view = View(Box(10, 5, 40, 60), True, (1.2, 1.1, 0.9, 0.1))
    plain = View(Box(10, 5, 40, 60), True)
    torch.testing.assert_close(view.apply_to_mask(mask, SIZE), plain.render(mask.expand(-1, 3, -1, -1), SIZE)[:, :1])


def test_random_crops_keep_at_least_half_of_the_mask() -> None:
    mask = torch.zeros(SHAPE)
    mask[:12, :12] = 1
    augmentation = Augmentation(variants=30, crop=0.5, seed=1)
    for view in draw_views(SHAPE, SIZE, augmentation, flip=False, index=0, mask=mask):
        box = view.box
        assert mask[box.top : box.top + box.height, box.left : box.left + box.width].sum() >= 72


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop": 0.2}, r"^variants .*\b1\b.*\bcrop\b.*\b0\.2\b.*\bcolour\b.*\b0\.0\b"),
        ({"variants": 0}, r"^variants .*\b0\b"),
        ({"variants": 1000}, r"^variants .*\b1000\b.*\b1\b.*\b64\b"),
        ({"variants": 4, "crop": 0.9}, r"^crop .*\b0\.9\b"),
        ({"variants": 4, "color": float("nan")}, r"^colour .*\bnan\b"),
    ],
)
def test_settings_out_of_range_are_named(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**given)
