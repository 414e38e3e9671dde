"""The sheet: the photographs, and each scene by the model as it was and by the personalised one."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN, TITLE = 12, 34
INK, PAPER = "#202020", "#ffffff"
Pictures = Sequence[Sequence[Image.Image]]


def sheet(
    photographs: Sequence[Image.Image], rows: dict[str, Pictures], scenes: Sequence[str], side: int
) -> Image.Image:  # fmt: skip
    """Photographs to the left, then a column for each scene; a block of rows for each of `rows` (name -> pictures of
    each scene), in cells `side` pixels wide."""
    high = {name: max(map(len, pictures)) for name, pictures in rows.items()}
    width = (1 + len(scenes)) * (side + MARGIN) + 2 * MARGIN
    below = sum(h * (side + 4) + TITLE for h in high.values())
    height = max(below, len(photographs) * (side + 4) + TITLE) + TITLE + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    column(page, photographs, MARGIN, TITLE + MARGIN, side)
    draw.text((MARGIN, MARGIN), "photographs", INK, font())
    top = MARGIN
    for number, scene in enumerate(scenes):
        draw.multiline_text((left_of(number, side), top), wrapped(scene, draw, side), INK, font(), spacing=2)
    top += TITLE
    for name, pictures in rows.items():
        draw.text((left_of(0, side), top + TITLE - 18), name, INK, font())
        for number, of_scene in enumerate(pictures):
            column(page, of_scene, left_of(number, side), top + TITLE, side)
        top += high[name] * (side + 4) + TITLE
    return page


def left_of(scene: int, side: int) -> int:
    """Where a scene's column begins."""
    return 2 * MARGIN + (scene + 1) * (side + MARGIN)


def column(page: Image.Image, pictures: Sequence[Image.Image], left: int, top: int, side: int) -> None:
    """Pictures one under the other."""
    for index, picture in enumerate(pictures):
        small = picture.width <= 64
        how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        page.paste(picture.convert("RGB").resize((side, side), how), (left, top + index * (side + 4)))


def wrapped(text: str, draw: ImageDraw.ImageDraw, width: int) -> str:
    """The text in lines no wider than `width`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font()) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The one that comes with Pillow."""
    return ImageFont.load_default(12)
