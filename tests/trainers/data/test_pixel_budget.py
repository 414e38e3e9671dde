"""Images that are larger than they look: what reading them may take is bounded before they are decoded."""

import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.own_process import alone, run_alone, starts_it
from hyperbooth.trainers.data import pixel_budget
from hyperbooth.trainers.data.image_folder import read_folder
from hyperbooth.trainers.data.image_reader import ReadOptions, read_image
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

MIB = 2**20


def png(path: Path, width: int, height: int, depth: int, color: int, value: int = 0) -> None:
    """Write a PNG of one value; color 0 is gray, 2 RGB, 6 RGBA."""
    row = b"\0" + bytes([value]) * (width * {0: 1, 2: 3, 6: 4}[color] * depth // 8)
    packed = zlib.compressobj(1)
    parts = [packed.compress(row) for _ in range(height)] + [packed.flush()]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(parts)) + chunk(b"IEND", b"")
    )


def jpeg(path: Path, width: int, height: int, **options: object) -> None:
    Image.new("RGB", (width, height), (200, 100, 50)).save(path, **options)


BOMBS: dict[str, Callable[[Path], None]] = {
    "40,000,000 x 1": lambda folder: png(folder / "a.png", 40_000_000, 1, 8, 0),
    "1 x 200,000": lambda folder: png(folder / "a.png", 1, 200_000, 8, 0),
    "16 bit of 13,300 squared": lambda folder: png(folder / "a.png", 13_300, 13_300, 16, 0),
    "RGBA of 13,300 squared": lambda folder: png(folder / "a.png", 13_300, 13_300, 8, 6),
}
SIZES = {
    "40,000,000 x 1": "40000000 x 1",
    "1 x 200,000": "1 x 200000",
    "16 bit of 13,300 squared": "13300 x 13300",
    "RGBA of 13,300 squared": "13300 x 13300",
}
LARGE: dict[str, Callable[[Path], None]] = {
    "16 bit of 9,000 squared": lambda folder: png(folder / "a.png", 9_000, 9_000, 16, 0),
    "RGBA of 9,000 squared": lambda folder: png(folder / "a.png", 9_000, 9_000, 8, 6, 128),
    "RGB of 16 bit": lambda folder: png(folder / "a.png", 9_000, 9_000, 16, 2),
    "a photograph of 200 megapixels": lambda folder: jpeg(folder / "a.jpg", 16_320, 12_240),
}
MOST = 900
"""MiB that an image of 100 million pixels may take: 400 as RGBA, and one copy."""


@alone
@pytest.mark.parametrize("kind", BOMBS)
def test_too_many_pixels_are_refused_by_their_number(tmp_path: Path, kind: str) -> None:
    BOMBS[kind](tmp_path)
    before = peak()
    with pytest.raises(
        ValueError, match=rf"(?s){tmp_path.name}\b.*\ba\.png\b.*\b{SIZES[kind]}\b.*\b{pixel_budget.MAX_SIDE}\b"
    ):
        read_folder(tmp_path, ReadOptions())
    assert peak() - before < 20 * MIB


@alone
@pytest.mark.parametrize("kind", LARGE)
def test_large_images_are_reduced_within_the_budget(tmp_path: Path, kind: str) -> None:
    LARGE[kind](tmp_path)
    before = peak()
    (found,), lines = read_folder(tmp_path, ReadOptions())
    size = "16320 x 12240" if "megapixels" in kind else "9000 x 9000"
    assert max(found.pixels.shape) == 2048 and any(found.name in line and size in line for line in lines)
    assert peak() - before < MOST * MIB


def peak() -> int:
    """Return the peak memory of this process in bytes, and start a new count."""
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    status = Path("/proc/self/status")
    if status.exists():
        value = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
        Path("/proc/self/clear_refs").write_text("5")
    return value


@starts_it
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_in_a_process_of_its_own() -> None:
    run_alone(__file__, len(BOMBS) + len(LARGE), "-k", "refused_by or within_the")


def test_a_large_jpeg_keeps_its_orientation_and_its_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are small here, so that an ordinary image is a large one."""
    monkeypatch.setattr(pixel_budget, "REDUCED_ABOVE", 1000)
    monkeypatch.setattr(pixel_budget, "MAX_PIXELS", 100_000)
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[:, :300] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    found = read_image(tmp_path / "a.jpg", ReadOptions(longest_side=60))
    assert found.pixels.shape == (60, 40, 3)
    rotated, downscaled = found.notes
    assert "rotated" in rotated and "400 x 600" in downscaled
    assert found.pixels[:28].min() > 0.9 and found.pixels[32:].max() < 0.1
    with pytest.raises(ValueError, match="600 x 400"):
        read_image(tmp_path / "b.png", ReadOptions())


def test_a_mask_is_compared_with_the_image_at_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_budget, "REDUCED_ABOVE", 1000)
    Image.new("RGB", (600, 400)).save(tmp_path / "a.jpg")
    Image.new("L", (600, 400), 255).save(tmp_path / "a.mask.png")
    found = read_image(tmp_path / "a.jpg", ReadOptions(longest_side=60), tmp_path / "a.mask.png")
    assert found.pixels.shape == (40, 60, 3) and found.mask.shape == (40, 60)
    Image.new("L", (300, 200), 255).save(tmp_path / "a.mask.png")
    with pytest.raises(ValueError, match=r"300 x 200.*600 x 400"):
        read_image(tmp_path / "a.jpg", ReadOptions(longest_side=60), tmp_path / "a.mask.png")


def test_memory_that_runs_out_is_a_file_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (80, 80), (ord(name[0]), 0, 0)).save(tmp_path / name)
    load = PngImageFile.load

    def short(image: PngImageFile) -> object:
        if str(image.filename).endswith("a.png"):
            raise MemoryError
        return load(image)

    monkeypatch.setattr(PngImageFile, "load", short)
    found, lines = read_folder(tmp_path, ReadOptions())
    assert [image.name for image in found] == ["b.png"] and any("a.png" in line and "memory" in line for line in lines)
