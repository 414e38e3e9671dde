"""A sheet of pictures to compare: a grid with words above, to the left and below."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = "#202020", "#ffffff"
GAP = 6
SMALL = 96
"""Pixels up to which a picture is shown by its pixels, not smoothed."""


def image_grid(
    cells: Sequence[Sequence[Image.Image | None]], above: Sequence[str], left: Sequence[str] = (),
    below: Sequence[str] = (), side: int = 192, text: int = 13,
) -> Image.Image:  # fmt: skip
    """Pictures in rows and columns, each fitted into a square.

    Args:
        cells: rows of pictures; None leaves a place empty.
        above, below: words of each column.
        left: words of each row; none: no column for them.
        side: of a square, in pixels.
        text: height of the words, in pixels.
    """
    columns = max(len(above), *(len(row) for row in cells))
    margin = side if any(left) else 0
    top, bottom = (_height(words, side, text) for words in (above, below))
    size = margin + columns * (side + GAP) + GAP, top + len(cells) * (side + GAP) + bottom + 2 * GAP
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    for column in range(columns):
        x = margin + GAP + column * (side + GAP)
        for words, y in ((above, GAP), (below, size[1] - bottom)):
            if column < len(words):
                draw.multiline_text((x, y), wrapped(words[column], side, text), INK, _font(text), spacing=2)
    for number, row in enumerate(cells):
        y = top + GAP + number * (side + GAP)
        if number < len(left):
            draw.multiline_text((GAP, y), wrapped(left[number], side - GAP, text), INK, _font(text), spacing=2)
        for column, picture in enumerate(row):
            if picture is not None:
                _paste(page, picture, (margin + GAP + column * (side + GAP), y), side)
    return page


def wrapped(words: str, width: int, text: int) -> str:
    """The words in lines no wider than ``width`` pixels; a word that is wider by itself is broken."""
    font, lines = _font(text), []
    for line in words.split("\n"):
        current = ""
        for word in line.split():
            longer = f"{current} {word}".strip()
            if font.getlength(longer) <= width:
                current = longer
                continue
            lines += [current] if current else []
            *full, current = _broken(word, width, font)
            lines += full
        lines.append(current)
    return "\n".join(lines)


def _broken(word: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _height(words: Sequence[str], width: int, text: int) -> int:
    lines = max((wrapped(word, width, text).count("\n") + 1 for word in words if word), default=0)
    return lines * (text + 5)


def _paste(page: Image.Image, picture: Image.Image, at: tuple[int, int], side: int) -> None:
    how = Image.Resampling.NEAREST if max(picture.size) <= SMALL else Image.Resampling.LANCZOS
    scale = side / max(picture.size)
    fitted = picture.convert("RGB").resize([max(1, round(n * scale)) for n in picture.size], how)
    page.paste(fitted, (at[0] + (side - fitted.width) // 2, at[1] + (side - fitted.height) // 2))


def told_apart(names: Sequence[str], text: int) -> list[str]:
    """The names, with numbers before them if there are letters that cannot be shown."""
    whole = all(_shows(letter, text) for name in names for letter in name)
    return [*names] if whole else [f"{number}: {name}" for number, name in enumerate(names, 1)]


def _shows(letter: str, text: int) -> bool:
    """Whether the font has it: what it has not, it draws as what no text holds."""
    font = _font(text)
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek and Cyrillic letters."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
