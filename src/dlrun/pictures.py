"""Drawing what a model was shown and what it said, with PIL: boxes, masks, captions, grids, PNG bytes.

Nothing smaller than `_LEGIBLE` pixels is drawn on: small pictures are first enlarged by a whole factor.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun._pictures_palette import Colour, palette
from dlrun.contracts import IGNORED

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

__all__ = ["Colour", "captioned", "draw_boxes", "enlarged", "fitted", "grid", "indexed", "overlay", "palette",
           "png_bytes", "side_by_side", "to_pil"]  # fmt: skip

_LEGIBLE = 140  # pixels of a picture's longer side
_INK, _WRONG, _PAPER = (34, 38, 43), (190, 60, 0), (255, 255, 255)
_CAPTION_LINES = 4


def to_pil(image_CHW: Tensor) -> Image:
    """An RGB picture of its own size out of pixels 0..255 (uint8, or float that is rounded).

    One channel is grey, three are RGB; of other numbers the first three (of two, the first) are shown.
    """
    from PIL import Image

    pixels = image_CHW.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = pixels.float().round().clamp(0, 255).to(torch.uint8)
    pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def enlarged(image: Image) -> Image:
    """A picture by the least whole factor that makes it legible; one that is large enough as it is."""
    factor = _factor(image)
    return image if factor == 1 else image.resize((image.width * factor, image.height * factor), _nearest())


def _factor(image: Image) -> int:
    return max(1, -(-_LEGIBLE // max(image.size)))


def _nearest() -> int:
    from PIL.Image import Resampling

    return Resampling.NEAREST


def fitted(image: Image, width: int) -> Image:
    """A picture made narrower, in proportion, where it is wider than this."""
    if image.width <= width:
        return image
    from PIL.Image import Resampling

    return image.resize((width, max(1, round(image.height * width / image.width))), Resampling.LANCZOS)


# ---------------------------------------------------------------- boxes and masks


def draw_boxes(
    image: Image,
    boxes: Tensor | Sequence[Sequence[float]],
    texts: Sequence[str] = (),
    colours: Sequence[Colour] = (),
) -> Image:
    """The picture with boxes (left, top, right, bottom in its pixels), each with its text at a corner.

    texts, colours: one a box, or none at all. What comes first is drawn last, on top: give the surest box first.
    """
    from PIL import ImageDraw

    factor, picture = _factor(image), enlarged(image.convert("RGB")).copy()
    corners = [[float(value) * factor for value in box] for box in boxes]
    order = list(range(len(corners)))[::-1]
    colours = colours or [palette(1)[0]] * len(corners)
    draw, width = ImageDraw.Draw(picture), max(2, round(max(picture.size) / 240))
    for index in order:
        left, top, right, bottom = (round(value) for value in corners[index])
        # PIL's last pixel is inside the box, and it takes no box whose sides are swapped.
        box = (left, top, max(left, right - 1), max(top, bottom - 1))
        draw.rectangle(box, outline=colours[index], width=width)
    font = _font(max(9, round(max(picture.size) / 40)))
    for index in order if texts else ():
        _label(picture, corners[index], texts[index], colours[index], font)
    return picture


def _label(picture: Image, box: Sequence[float], text: str, colour: Colour, font: FreeTypeFont) -> None:
    """A text on a plate of the box's colour: above the box, or inside its upper edge at the picture's border."""
    from PIL import ImageDraw

    if not text:
        return
    draw = ImageDraw.Draw(picture)
    ascent, descent = font.getmetrics()
    width, height = round(draw.textlength(text, font)) + 6, ascent + descent
    left = min(max(0, round(box[0])), max(0, picture.width - width))
    top = round(box[1]) - height
    top = top if top >= 0 else min(max(0, round(box[1])), max(0, picture.height - height))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
    draw.text((left + 3, top), text, _on(colour), font)


def _on(colour: Colour) -> Colour:
    """Black or white, whichever is read more easily on a colour (luma of ITU-R BT.601)."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else _PAPER


def overlay(image: Image, mask_HW: Tensor | np.ndarray, num_classes: int, strength: float = 0.5) -> Image:
    """The picture with each class's colour laid over it, 0 (unseen) to 1 (opaque); ignored pixels stay bare.

    mask_HW: a class a pixel, of any size; scaled to the picture by the nearest pixel.
    """
    from PIL import Image

    mask_HW = np.asarray(mask_HW)
    picture = enlarged(image.convert("RGB"))
    colour = indexed(mask_HW, num_classes).convert("RGB").resize(picture.size, _nearest())
    opacity_HW = np.where(mask_HW == IGNORED, 0, round(255 * strength)).astype(np.uint8)
    opacity = Image.fromarray(opacity_HW).resize(picture.size, _nearest())
    return Image.composite(colour, picture, opacity)


def indexed(mask_HW: Tensor | np.ndarray, num_classes: int) -> Image:
    """A mask as a picture whose pixels are the class indices, and whose palette shows them in the classes' colours
    (ignored pixels in white)."""
    from PIL import Image

    entries = [_PAPER] * 256
    entries[:num_classes] = palette(num_classes)[:256]
    made = Image.fromarray(np.asarray(mask_HW).astype(np.uint8))
    made.putpalette([channel for colour in entries for channel in colour])
    return made


# ---------------------------------------------------------------- pages


def side_by_side(images: Sequence[Image]) -> Image:
    """Pictures in one row, a narrow gap between them."""
    return _rows([[enlarged(image) for image in images]], gap=4, margin=0)


def captioned(image: Image, text: str, is_wrong: bool = False) -> Image:
    """The picture with a text below, in up to four lines; framed, the text bold and red, where it is wrong."""
    from PIL import Image, ImageDraw

    picture = enlarged(image.convert("RGB"))
    font = _font(max(12, round(picture.width / 40)), bold=is_wrong)
    lines = _wrapped(text, font, picture.width)
    height = round(sum(font.getmetrics()) * 1.05)
    page = Image.new("RGB", (picture.width, picture.height + height * len(lines) + 3), _PAPER)
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    if is_wrong:
        draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=_WRONG, width=3)
    for number, line in enumerate(lines):
        place = (picture.width / 2, picture.height + 3 + number * height)
        draw.text(place, line, _WRONG if is_wrong else _INK, font, anchor="ma")
    return page


def _wrapped(text: str, font: FreeTypeFont, width: float) -> list[str]:
    """Words in lines of at most this width; what does not fit ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > _CAPTION_LINES:
        lines = [*lines[: _CAPTION_LINES - 1], " ".join(lines[_CAPTION_LINES - 1 :])]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: FreeTypeFont, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def grid(images: Sequence[Image], columns: int) -> Image:
    """Pictures row by row on one white page, a small margin around each."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    return _rows(rows, gap=12, margin=12)


def _rows(rows: Sequence[Sequence[Image]], gap: int, margin: int) -> Image:
    """Rows of pictures in cells that are all as wide as the widest, each row as high as its highest."""
    from PIL import Image

    width = max(image.width for row in rows for image in row)
    heights = [max(image.height for image in row) for row in rows]
    columns = max(map(len, rows))
    size = (
        columns * width + (columns - 1) * gap + 2 * margin,
        sum(heights) + (len(rows) - 1) * gap + 2 * margin,
    )
    page, top = Image.new("RGB", size, _PAPER), margin
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            page.paste(image, (margin + column * (width + gap) + (width - image.width) // 2, top))
        top += height + gap
    return page


def png_bytes(image: Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


@functools.lru_cache(maxsize=32)
def _font(size: int, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans, as in the run's other figures: it comes with matplotlib and has the arrows that PIL's own lacks."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)
