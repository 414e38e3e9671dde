"""A folder as users have them: every kind of file, good and bad."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hyperbooth.trainers.data.image_folder import folder_state, natural_order, read_folder
from hyperbooth.trainers.data.image_reader import ReadOptions
from PIL import Image, ImageFile

SIDE = 80


def photo(seed: int = 0, height: int = SIDE, width: int = SIDE + 16) -> Image.Image:
    """Return an image of smooth colors, which JPEG keeps."""
    y, x = np.mgrid[0:height, 0:width]
    colors = [128 + 100 * np.sin(x / 17 + seed), 128 + 100 * np.cos(y / 13 + seed), 40 * seed % 256 + 0 * x]
    return Image.fromarray(np.stack(colors, -1).astype(np.uint8))


def save(folder: Path, name: str, image: Image.Image | None = None, **options: Any) -> Path:
    (image or photo()).save(folder / name, **options)
    return folder / name


def only(folder: Path, **options: Any) -> Any:
    (found,), _ = read_folder(folder, ReadOptions(**options))
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
    torch.testing.assert_close(found.pixels, values(photo()), atol=0.04, rtol=0)
    assert ["rotated" in note for note in found.notes] == [True] * (orientation > 1)


def test_every_kind_of_pixel_is_read_at_its_own_brightness(tmp_path: Path) -> None:
    gray = photo().convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    kinds = {"L": gray, "16": deep, "1": gray.convert("1"), "LA": gray.convert("LA"), "P": photo().quantize(256)}
    for name, image in kinds.items():
        path = save(tmp_path, f"{name}.png", image)
        expected = image.convert("RGB") if name != "16" else gray.convert("RGB")
        torch.testing.assert_close(only(tmp_path).pixels, values(expected), atol=1e-6, rtol=0)
        path.unlink()
    save(tmp_path, "cmyk.jpg", photo().convert("CMYK"), quality=100)
    torch.testing.assert_close(only(tmp_path).pixels, values(photo()), atol=0.05, rtol=0)


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    save(tmp_path, "a.png", Image.fromarray(np.full((SIDE, SIDE), 6553, dtype=np.uint16)))
    torch.testing.assert_close(only(tmp_path).pixels, torch.full((SIDE, SIDE, 3), 0.1), atol=0.002, rtol=0)


def test_transparency_is_over_white_and_becomes_the_mask(tmp_path: Path) -> None:
    cut_out = photo().convert("RGBA")
    alpha = np.full((SIDE, SIDE + 16), 255, np.uint8)
    alpha[:, :40] = 0
    cut_out.putalpha(Image.fromarray(alpha))
    save(tmp_path, "a.png", cut_out)
    found = only(tmp_path)
    assert found.pixels[:, :40].min() == 1
    assert torch.equal(found.pixels[:, 40:], values(photo())[:, 40:])
    assert torch.equal(found.mask, values(Image.fromarray(alpha)))
    assert only(tmp_path, masks=False).mask is None


def test_a_mask_file_takes_precedence_over_transparency(tmp_path: Path) -> None:
    save(tmp_path, "a.png", photo().convert("RGBA"))
    mask = Image.fromarray((np.arange((SIDE) * (SIDE + 16)).reshape(SIDE, -1) % 256).astype(np.uint8))
    save(tmp_path, "a.mask.png", mask)
    found = only(tmp_path)
    assert found.name == "a.png" and torch.equal(found.mask, values(mask))


@pytest.mark.parametrize("written", ["a photo of sks dog", "\ufeffa photo\r\n of  sks dog \n"])
def test_the_caption_is_one_line(tmp_path: Path, written: str) -> None:
    save(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text(written, "utf-8")
    assert only(tmp_path).caption == "a photo of sks dog"
    assert only(tmp_path, captions=False).caption == ""


def test_large_images_are_downscaled_with_their_masks(tmp_path: Path) -> None:
    save(tmp_path, "a.png", photo(height=200, width=300))
    save(tmp_path, "a.mask.png", Image.new("L", (300, 200), 255))
    found = only(tmp_path, longest_side=150)
    assert found.pixels.shape == (100, 150, 3) and found.mask.shape == (100, 150)
    assert any("300 x 200" in note for note in found.notes)
    assert only(tmp_path, longest_side=0).pixels.shape == (200, 300, 3)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Return a folder with good images among everything that can be wrong."""
    save(tmp_path, "1 good.png", photo(1))
    whole = save(tmp_path, "2 truncated.jpg", photo(2)).read_bytes()
    (tmp_path / "2 truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3 text.png").write_text("not an image")
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


def test_files_that_are_left_out_are_named_with_the_reason(messy: Path) -> None:
    found, lines = read_folder(messy, ReadOptions())
    assert [image.name for image in found] == ["1 good.png", "9 latin.png", "11 moving.gif"]
    report = "\n".join(lines)
    for pattern in [
        r"left out: 2 truncated\.jpg\b.*\btruncated\b",
        r"left out: 3 text\.png\b.*\bnot an image\b",
        r"left out: 4 empty\.jpg\b.*\bnot an image\b",
        r"left out: 5 small\.png\b.*\b300 x 20\b.*\b64\b",
        r"left out: 6 again\.bmp\b.*\bduplicate\b.*\b1 good\.png",
        r"left out: 7 masked\.png\b.*\b7 masked\.mask\.png\b.*\b9 x 9\b.*\b96 x 80\b",
        r"left out: 8 black\.png\b.*\bmask\b.*\bblack\b",
        r"9 latin\.png\b.*\b96 x 80\b.*\bWindows-1252\b",
        r"left out: 10 damaged\.png\b.*\bdamaged\b",
        r"11 moving\.gif\b.*\b96 x 80\b.*\bfirst frame\b",
        r"no text\b.*\b1 good\.png, 11 moving\.gif",
        r"ignored\b.*\bnotes\.pdf, more/",
    ]:
        assert re.search(f"^{pattern}", report, re.MULTILINE), report


def test_stop_ends_at_the_first_broken_file(messy: Path) -> None:
    with pytest.raises(ValueError, match=r"\b2 truncated\.jpg\b.*\btruncated\b.*\bon_broken\b.*\bskip\b"):
        read_folder(messy, ReadOptions(on_broken="stop"))


def test_truncated_images_are_found_whatever_other_extensions_set_in_pillow(messy: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    found, _ = read_folder(messy, ReadOptions())
    assert [image.name for image in found] == ["1 good.png", "9 latin.png", "11 moving.gif"]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_images_without_a_caption_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path, f"{name}.png", photo(ord(name)))
    (tmp_path / "b.txt").write_text("a photo of sks dog in the snow")
    found, lines = read_folder(tmp_path, ReadOptions())
    assert [image.caption for image in found] == ["", "a photo of sks dog in the snow", ""]
    assert any(line.startswith("no text") and "a.png, c.png:" in line for line in lines)


def test_a_folder_without_a_usable_image_is_refused_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(ValueError, match=rf"(?s)\b{tmp_path.name}\b.*\ba\.png\b.*\bnot an image\b"):
        read_folder(tmp_path, ReadOptions())


def test_any_change_in_the_folder_changes_its_state(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    first = folder_state(tmp_path)
    assert folder_state(tmp_path) == first
    (tmp_path / "a.txt").write_text("text")
    second = folder_state(tmp_path)
    save(tmp_path, "a.png", photo(1))
    assert len({tuple(first), tuple(second), tuple(folder_state(tmp_path))}) == 3


@pytest.mark.parametrize("given", [{"on_broken": "ask"}, {"longest_side": -1}])
def test_settings_out_of_range_are_named(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(given))} .*{next(iter(given.values()))}"):
        ReadOptions(**given)


HEIC = b"\0\0\0\x18ftypheic" + bytes(100)


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.heif", "IMG_1.jpg"])
def test_heic_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HEIC)
    with pytest.raises(ValueError, match=rf"{name}: .*HEIC.*JPEG"):
        read_folder(tmp_path, ReadOptions())


def test_a_folder_of_other_files_says_why_each_is_not_read(tmp_path: Path) -> None:
    for name in ("film.mp4", "raw.cr3"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"(?s)film\.mp4: .*raw\.cr3: "):
        read_folder(tmp_path, ReadOptions())


def test_jfif_is_a_jpeg(tmp_path: Path) -> None:
    save(tmp_path, "a.jfif", format="JPEG")
    assert only(tmp_path).name == "a.jfif"


@pytest.mark.parametrize(
    ("written", "caption", "note"),
    [
        ("Möwe".encode("cp1252"), "Möwe", "Windows-1252"),
        ("Möwe".encode("utf-16"), "Möwe", None),
        ("Möwe".encode(), "Möwe", None),
    ],
)
def test_captions_of_other_encodings(tmp_path: Path, written: bytes, caption: str, note: str | None) -> None:
    save(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_bytes(written)
    found = only(tmp_path)
    assert found.caption == caption and [note in text for text in found.notes] == [True] * bool(note)


@pytest.mark.parametrize("content", [b"a" * 5001, b"a" * 10**7, b"\0\1\2binary", b" " * 10**6])
def test_what_is_no_caption_leaves_its_image_out(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, "a.jpg")
    save(tmp_path, "b.jpg", photo(1))
    (tmp_path / "a.txt").write_bytes(content)
    found, lines = read_folder(tmp_path, ReadOptions())
    assert [image.name for image in found] == ["b.jpg"] and any("a.jpg: " in line and "a.txt" in line for line in lines)


@pytest.mark.parametrize("suffix", ["-masklabel", "_mask", "-mask", ".mask", " Mask", "_alpha"])
def test_masks_of_other_tools_are_masks(tmp_path: Path, suffix: str) -> None:
    save(tmp_path, "a.jpg")
    mask = Image.fromarray((np.arange(SIDE * (SIDE + 16)).reshape(SIDE, -1) % 256).astype(np.uint8))
    save(tmp_path, f"a{suffix}.png", mask)
    found = only(tmp_path)
    assert found.name == "a.jpg" and torch.equal(found.mask, values(mask))
    (found,), lines = read_folder(tmp_path, ReadOptions(masks=False))
    assert found.name == "a.jpg" and found.mask is None
    assert any(line.startswith(f"left out: a{suffix}.png: ") and "a.jpg" in line for line in lines)


@pytest.mark.parametrize(
    "name", ["a_depth.png", "a-canny.png", "a.openpose.png", "a-condlabel.png", "thumb_a.png", "a_thumb.jpg"]
)
def test_control_images_and_thumbnails_are_left_out(tmp_path: Path, name: str) -> None:
    save(tmp_path, "a.jpg")
    save(tmp_path, name, photo(3))
    found, lines = read_folder(tmp_path, ReadOptions())
    assert [image.name for image in found] == ["a.jpg"]
    assert any(line.startswith(f"left out: {name}: ") and "a.jpg" in line for line in lines)


def test_a_photograph_of_such_a_name_is_a_photograph(tmp_path: Path) -> None:
    for seed, name in enumerate(("mask.png", "red_mask.png", "in depth.png", "a_b.png", "a.png")):
        save(tmp_path, name, photo(seed))
    found, _ = read_folder(tmp_path, ReadOptions())
    assert len(found) == 5


def test_of_several_masks_the_packs_own_is_taken(tmp_path: Path) -> None:
    save(tmp_path, "a.jpg")
    for name, white in (("a-mask", 10), ("a.mask", 200), ("a_masklabel", 30)):
        save(tmp_path, f"{name}.png", Image.new("L", (SIDE + 16, SIDE), white))
    found, lines = read_folder(tmp_path, ReadOptions())
    assert len(found) == 1 and found[0].mask.mean().item() == pytest.approx(200 / 255)
    assert all(any(mask in line and "a.jpg" in line for line in lines) for mask in ("a-mask.png", "a_masklabel.png"))


def test_folders_of_repeats_are_read_as_kohyas_scripts_do(tmp_path: Path) -> None:
    for folder, count in (("10_sks dog", 1), ("5_sks_dog outside", 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            save(tmp_path / folder, f"{number}.png", photo(10 * count + number))
    (tmp_path / "5_sks_dog outside" / "1.txt").write_text("a sleeping dog")
    found, lines = read_folder(tmp_path, ReadOptions())
    assert [(image.name, image.caption) for image in found] == [
        ("0.png", "sks dog outside"), ("1.png", "a sleeping dog"), ("0.png", "sks dog"), ("0.png", "sks dog")
    ]  # fmt: skip
    assert any("10_sks dog" in line and "2 times" in line for line in lines)
    before = folder_state(tmp_path)
    (tmp_path / "10_sks dog" / "0.txt").write_text("new")
    assert folder_state(tmp_path) != before
    save(tmp_path, "a.png")
    assert only(tmp_path).name == "a.png", "a folder with images of its own is no folder of folders"
