"""A captioned grid of images for comparison: rows and columns with text above, to the left and below.

``torchvision.utils.make_grid`` tiles tensors of one size and draws no text; here images of any size are fitted into
squares, places may be empty, and captions are wrapped to their column.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TEXT_COLOR, BACKGROUND = "#202020", "#ffffff"
GAP = 6
"""Pixels between images."""
SMALL = 96
"""The longest side, in pixels, of images that are enlarged without smoothing."""
LINE_SPACING = 5
"""Pixels that a line of text takes beyond the font size."""


def image_grid(
    cells: Sequence[Sequence[Image.Image | None]],
    *,
    above: Sequence[str],
    left: Sequence[str] = (),
    below: Sequence[str] = (),
    side: int = 192,
    font_size: int = 13,
) -> Image.Image:
    """Draw images in rows and columns, each fitted into a square.

    Args:
        cells: rows of images; None leaves a cell empty.
        above: captions of the columns, at the top.
        left: captions of the rows; where all are empty there is no column for them.
        below: captions of the columns, at the bottom.
        side: of a square, in pixels.
        font_size: of all captions, in pixels.
    """
    columns = max(len(above), *(len(row) for row in cells))
    margin = side if any(left) else 0
    top, bottom = (_text_height(texts, side, font_size) for texts in (above, below))
    size = margin + columns * (side + GAP) + GAP, top + len(cells) * (side + GAP) + bottom + 2 * GAP
    page = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(page), _font(font_size)
    xs = [margin + GAP + column * (side + GAP) for column in range(columns)]
    ys = [top + GAP + row * (side + GAP) for row in range(len(cells))]
    for texts, y in ((above, GAP), (below, size[1] - bottom)):
        for x, text in zip(xs, texts, strict=False):
            draw.multiline_text((x, y), wrap_text(text, side, font_size), TEXT_COLOR, font, spacing=2)
    for y, text in zip(ys, left, strict=False):
        draw.multiline_text((GAP, y), wrap_text(text, side - GAP, font_size), TEXT_COLOR, font, spacing=2)
    for y, row in zip(ys, cells, strict=True):
        for x, image in zip(xs, row, strict=False):
            if image is not None:
                _paste(page, image, (x, y), side)
    return page


def wrap_text(text: str, width: int, font_size: int) -> str:
    """Break ``text`` into lines of at most ``width`` pixels; a longer word is broken as well.

    Args:
        text: its own line breaks are kept.
        width: in pixels.
        font_size: in pixels.
    """
    font, lines = _font(font_size), []
    for line in text.split("\n"):
        current = ""
        for word in line.split():
            longer = f"{current} {word}".strip()
            if font.getlength(longer) <= width:
                current = longer
                continue
            lines += [current] if current else []
            *full, current = _break_word(word, width, font)
            lines += full
        lines.append(current)
    return "\n".join(lines)


def _break_word(word: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _text_height(texts: Sequence[str], width: int, font_size: int) -> int:
    lines = max((wrap_text(text, width, font_size).count("\n") + 1 for text in texts if text), default=0)
    return lines * (font_size + LINE_SPACING)


def _paste(page: Image.Image, image: Image.Image, at: tuple[int, int], side: int) -> None:
    resampling = Image.Resampling.NEAREST if max(image.size) <= SMALL else Image.Resampling.LANCZOS
    scale = side / max(image.size)
    fitted = image.convert("RGB").resize([max(1, round(n * scale)) for n in image.size], resampling)
    page.paste(fitted, (at[0] + (side - fitted.width) // 2, at[1] + (side - fitted.height) // 2))


def readable_names(names: Sequence[str], font_size: int) -> list[str]:
    """Return ``names``, numbered if one of them has a letter that the font lacks."""
    complete = all(_has_glyph(letter, font_size) for name in names for letter in name)
    return [*names] if complete else [f"{number}: {name}" for number, name in enumerate(names, 1)]


def _has_glyph(letter: str, font_size: int) -> bool:
    """Return whether the font has ``letter``: a missing one is drawn like a code point that no font has."""
    font = _font(font_size)
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib: Latin, Greek and Cyrillic letters; else Pillow's own font."""
    try:
        import matplotlib

        return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    except (ImportError, OSError, RuntimeError):
        return ImageFont.load_default(size)
