"""The image grid: every image whole, in its cell, and no caption over another."""

from hyperbooth.trainers.reporting.image_grid import GAP, _font, image_grid, readable_names, wrap_text
from PIL import Image

RED, BLUE = (250, 10, 10), (10, 10, 250)


def test_images_are_in_rows_and_columns() -> None:
    red, blue = Image.new("RGB", (32, 32), RED), Image.new("RGB", (64, 32), BLUE)
    page = image_grid([[red, None], [blue, red]], above=["", ""], side=50)
    assert page.size == (2 * (50 + GAP) + GAP, 2 * (50 + GAP) + 2 * GAP)
    middle = [(GAP + column * (50 + GAP) + 25, GAP + row * (50 + GAP) + 25) for row in (0, 1) for column in (0, 1)]
    assert [page.getpixel(at) for at in middle] == [RED, (255, 255, 255), BLUE, RED]
    at = middle[2]
    assert page.getpixel((at[0], at[1] - 20)) == (255, 255, 255)  # a wide one is not stretched


def test_captions_get_room_of_their_own() -> None:
    red = Image.new("RGB", (200, 200), RED)
    plain = image_grid([[red]], above=[""], side=100)
    titled = image_grid([[red]], above=["above it"], left=["to the left"], below=["below\nit"], side=100)
    assert titled.width == plain.width + 100 and titled.height > plain.height + 3 * 13
    assert sum(titled.getpixel((x, y)) == RED for x in range(titled.width) for y in range(titled.height)) > 9000


def test_long_captions_are_wrapped() -> None:
    lines = wrap_text("a face in front of a brick wall, as a sketch", 90, 13).split("\n")
    assert len(lines) > 2 and " ".join(lines) == "a face in front of a brick wall, as a sketch"
    assert wrap_text("one\ntwo", 500, 13) == "one\ntwo"


def test_a_word_wider_than_its_column_is_broken() -> None:
    name = "a_dog_lora_rank_16_learning_rate_0.0001_steps_1000"
    lines = wrap_text(f"the {name}", 90, 13).split("\n")
    assert "".join(lines) == f"the{name}" and all(_font(13).getlength(line) <= 90 for line in lines)
    red = Image.new("RGB", (100, 100), RED)
    page = image_grid([[red, red]], above=[name, ""], side=100)
    right = page.crop((2 * GAP + 100, 0, page.width, page.height - 100 - 3 * GAP))
    assert [color for _, color in right.getcolors()] == [(255, 255, 255)]
    assert wrap_text("mm", 3, 13) == "m\nm"  # not even one letter has room


def test_names_that_cannot_be_shown_are_numbered() -> None:
    assert readable_names(["M\u00fcller", "\u0412\u0435\u0440\u0430"], 15) == [
        "M\u00fcller",
        "\u0412\u0435\u0440\u0430",
    ]
    assert readable_names(["first", "\u7b2c\u4e8c"], 15) == ["1: first", "2: \u7b2c\u4e8c"]
