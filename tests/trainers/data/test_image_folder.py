"""A folder as people have them: every kind of file, good and bad."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hyperbooth.trainers.data.image_folder import natural_order, read_folder, state_of
from hyperbooth.trainers.data.image_reader import ReadOptions
from PIL import Image, ImageFile

SIDE = 80


def photo(seed: int = 0, height: int = SIDE, width: int = SIDE + 16) -> Image.Image:
    """Smooth colours, so that JPEG keeps them."""
    y, x = np.mgrid[0:height, 0:width]
    colours = [128 + 100 * np.sin(x / 17 + seed), 128 + 100 * np.cos(y / 13 + seed), 40 * seed % 256 + 0 * x]
    return Image.fromarray(np.stack(colours, -1).astype(np.uint8))


def save(folder: Path, name: str, image: Image.Image | None = None, **options: Any) -> Path:
    (image or photo()).save(folder / name, **options)
    return folder / name


def only(folder: Path, **reading: Any) -> Any:
    (found,), _ = read_folder(folder, ReadOptions(**reading))
    return found


def values(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def test_names_are_in_natural_order() -> None:
    names = ["dog 10.png", "Dog 2.png", "cat.png", "dog 1.png", "10.png", "9.png", "dog.png"]
    assert sorted(names, key=natural_order) == [
        "9.png", "10.png", "cat.png", "dog 1.png", "Dog 2.png", "dog 10.png", "dog.png",
    ]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(photo())
    undo = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation]))
    save(tmp_path, "a.jpg", stored, exif=exif, quality=100, subsampling=0)
    found = only(tmp_path)
    torch.testing.assert_close(found.image, values(photo()), atol=0.04, rtol=0)
    assert found.notes == (("turned upright",) if orientation > 1 else ())


def test_every_kind_of_pixel_is_read_at_its_own_brightness(tmp_path: Path) -> None:
    grey = photo().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    kinds = {"L": grey, "16": deep, "1": grey.convert("1"), "LA": grey.convert("LA"), "P": photo().quantize(256)}
    for name, image in kinds.items():
        path = save(tmp_path, f"{name}.png", image)
        expected = image.convert("RGB") if name != "16" else grey.convert("RGB")
        torch.testing.assert_close(only(tmp_path).image, values(expected), atol=1e-6, rtol=0)
        path.unlink()
    save(tmp_path, "cmyk.jpg", photo().convert("CMYK"), quality=100)
    torch.testing.assert_close(only(tmp_path).image, values(photo()), atol=0.05, rtol=0)


def test_a_dark_16_bit_picture_stays_dark(tmp_path: Path) -> None:
    save(tmp_path, "a.png", Image.fromarray(np.full((SIDE, SIDE), 6553, dtype=np.uint16)))
    torch.testing.assert_close(only(tmp_path).image, torch.full((SIDE, SIDE, 3), 0.1), atol=0.002, rtol=0)


def test_transparency_is_over_white_and_becomes_the_mask(tmp_path: Path) -> None:
    cut_out = photo().convert("RGBA")
    alpha = np.full((SIDE, SIDE + 16), 255, np.uint8)
    alpha[:, :40] = 0
    cut_out.putalpha(Image.fromarray(alpha))
    save(tmp_path, "a.png", cut_out)
    found = only(tmp_path)
    assert found.image[:, :40].min() == 1
    assert torch.equal(found.image[:, 40:], values(photo())[:, 40:])
    assert torch.equal(found.mask, values(Image.fromarray(alpha)))
    assert only(tmp_path, masks=False).mask is None


def test_a_mask_beside_the_picture_goes_before_its_transparency(tmp_path: Path) -> None:
    save(tmp_path, "a.png", photo().convert("RGBA"))
    mask = Image.fromarray((np.arange((SIDE) * (SIDE + 16)).reshape(SIDE, -1) % 256).astype(np.uint8))
    save(tmp_path, "a.mask.png", mask)
    found = only(tmp_path)
    assert found.name == "a.png" and torch.equal(found.mask, values(mask))


@pytest.mark.parametrize("written", ["a photo of sks dog", "\ufeffa photo\r\n of  sks dog \n"])
def test_the_text_beside_the_picture_is_one_line(tmp_path: Path, written: str) -> None:
    save(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text(written, "utf-8")
    assert only(tmp_path).caption == "a photo of sks dog"
    assert only(tmp_path, captions=False).caption == ""


def test_large_photographs_are_scaled_down_with_their_masks(tmp_path: Path) -> None:
    save(tmp_path, "a.png", photo(height=200, width=300))
    save(tmp_path, "a.mask.png", Image.new("L", (300, 200), 255))
    found = only(tmp_path, longest_side=150)
    assert found.image.shape == (100, 150, 3) and found.mask.shape == (100, 150)
    assert "scaled down from 300 x 200" in found.notes
    assert only(tmp_path, longest_side=0).image.shape == (200, 300, 3)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """One good photograph among everything that goes wrong."""
    save(tmp_path, "1 good.png", photo(1))
    whole = save(tmp_path, "2 truncated.jpg", photo(2)).read_bytes()
    (tmp_path / "2 truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3 text.png").write_text("not a picture")
    (tmp_path / "4 empty.jpg").touch()
    save(tmp_path, "5 small.png", photo(5, 20, 300))
    save(tmp_path, "6 again.bmp", photo(1))
    save(tmp_path, "7 masked.png", photo(7))
    save(tmp_path, "7 masked.mask.png", Image.new("L", (9, 9), 255))
    save(tmp_path, "8 black.png", photo(8))
    save(tmp_path, "8 black.mask.png", Image.new("L", (SIDE + 16, SIDE)))
    save(tmp_path, "9 latin.png", photo(9))
    (tmp_path / "9 latin.txt").write_bytes("Möwe".encode("latin-1"))
    whole = save(tmp_path, "10 damaged.png", photo(10)).read_bytes()
    (tmp_path / "10 damaged.png").write_bytes(whole[:60] + b"\0" * 40 + whole[100:])
    frames = [photo(11), photo(12)]
    save(tmp_path, "11 moving.gif", frames[0], save_all=True, append_images=frames[1:])
    (tmp_path / "notes.pdf").write_text("")
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "more").mkdir()
    return tmp_path


def test_what_is_left_out_is_named_with_its_reason(messy: Path) -> None:
    found, lines = read_folder(messy, ReadOptions())
    assert [photograph.name for photograph in found] == ["1 good.png", "11 moving.gif"]
    report = "\n".join(lines)
    for line in [
        "left out: 2 truncated.jpg: truncated: the end of the file is missing",
        "left out: 3 text.png: not a picture, whatever its name says",
        "left out: 4 empty.jpg: not a picture, whatever its name says",
        "left out: 5 small.png: 300 x 20 pixels, too small: 64 is the least",
        "left out: 6 again.bmp: the same picture as 1 good.png",
        "left out: 7 masked.png: its mask 7 masked.mask.png is 9 x 9, the picture 96 x 80; make them equal",
        "left out: 8 black.png: its mask is black everywhere, so it would teach nothing",
        "left out: 9 latin.png: its text 9 latin.txt is not UTF-8; save it as UTF-8",
        "11 moving.gif: 96 x 80, the first of several pictures in it",
        "no text for any of them: the Subject's prompt is taken",
        "not looked at: notes.pdf, more/",
    ]:
        assert line in lines, report
    assert any(line.startswith("left out: 10 damaged.png: damaged (") for line in lines), report


def test_stop_ends_at_the_first_broken_file(messy: Path) -> None:
    with pytest.raises(ValueError, match=r"2 truncated\.jpg: truncated.*set on_broken to skip"):
        read_folder(messy, ReadOptions(on_broken="stop"))


def test_truncated_pictures_are_found_whatever_others_set_in_pillow(messy: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    found, _ = read_folder(messy, ReadOptions())
    assert [photograph.name for photograph in found] == ["1 good.png", "11 moving.gif"]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_photographs_without_a_text_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path, f"{name}.png", photo(ord(name)))
    (tmp_path / "b.txt").write_text("a photo of sks dog in the snow")
    found, lines = read_folder(tmp_path, ReadOptions())
    assert [photograph.caption for photograph in found] == ["", "a photo of sks dog in the snow", ""]
    assert "no text for a.png, c.png: the Subject's prompt is taken" in lines


def test_a_folder_without_a_usable_photograph_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(ValueError, match=r"(?s)no photograph in .* can be used.*a.png: not a picture"):
        read_folder(tmp_path, ReadOptions())


def test_any_change_in_the_folder_is_another_state(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    first = state_of(tmp_path)
    assert state_of(tmp_path) == first
    (tmp_path / "a.txt").write_text("text")
    second = state_of(tmp_path)
    save(tmp_path, "a.png", photo(1))
    assert len({tuple(first), tuple(second), tuple(state_of(tmp_path))}) == 3


@pytest.mark.parametrize("given", [{"on_broken": "ask"}, {"longest_side": -1}])
def test_settings_out_of_range_are_named(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        ReadOptions(**given)
