"""What pictures look like, where the user has not said: a sample of them is looked at."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from dlrun.contracts import DataSpec
from dlrun.data._bad import BadRows
from dlrun.data._cells import Cells
from dlrun.data._images import (
    WHOLE,
    BadPicture,
    Decoder,
    cropped,
    height_width,
    is_grey,
    open_picture,
    reading,
    strictly,
    upright,
)
from dlrun.data._source import Source
from dlrun.errors import DlrunError, Exit

_SAMPLE = 64


class Seen(NamedTuple):
    """A row's picture: its size in pixels, and whether it is grey."""

    row: int
    height: int
    width: int
    is_grey: bool


def choose_decoder(
    source: Source,
    column: str,
    rows: np.ndarray,
    image_size: int | list | None,
    channels: int | None,
    bad: BadRows,
    known: DataSpec | None,
    crop: list | None = None,
) -> Decoder:
    """What to make of the pictures: as the source run did, as set, else the size they share, grey if all seen are.

    Raises: DlrunError for pictures of several sizes where image_size is None.
    """
    if known is not None:
        is_scaled = image_size is not None or known.assets["image_size"] is not None
        return Decoder(*known.shapes["image"], resize=is_scaled, crop=tuple(known.assets.get("crop", WHOLE)))
    size = height_width(image_size, "data.image_size")
    kept = cropped(crop, size)
    if channels not in (None, 1, 3):
        raise DlrunError(f"data.channels: {channels} is neither 1 (grey) nor 3 (colour)")
    cells = Cells(source, column)
    seen = look(cells, rows[:: max(1, len(rows) // _SAMPLE)], bad)
    found = channels or (1 if all(one.is_grey for one in seen) else 3)
    guessed = channels is None and found == 1
    if size is not None:
        return Decoder(found, *size, resize=True, grey_guessed=guessed, crop=kept)
    return Decoder(found, *shared_size(cells, seen, "image"), grey_guessed=guessed)


def shared_size(cells: Cells, seen: list[Seen], what: Literal["image", "mask"]) -> tuple[int, int]:
    """Height and width of all that were seen. Raises DlrunError naming two that differ."""
    first, *others = seen
    for other in others:
        if other[1:3] != first[1:3]:
            called, size = ("pictures", max(first[1:3])) if what == "image" else ("masks", list(first[1:3]))
            setting = f"data.{what}_size={size}".replace(" ", "")
            raise DlrunError(
                f"{called} of several sizes: {cells.place(first.row)} is {first.width}x{first.height}, "
                f"{cells.place(other.row)} is {other.width}x{other.height}",
                f"scale them all: {setting if what == 'image' else repr(setting)}",
            )
    return first.height, first.width


def look(cells: Cells, rows: np.ndarray, bad: BadRows) -> list[Seen]:
    """Size and greyness of those that can be opened; pixels are not decoded."""
    seen, reason = [], ""
    with strictly():
        for row in rows.tolist():
            try:
                with reading():
                    picture = upright(open_picture(cells.given(row), cells.source.folder))
                seen.append(Seen(row, picture.height, picture.width, is_grey(picture)))
            except BadPicture as error:
                reason = reason or f"{cells.place(row)}: {error}"
                bad.report(cells.place(row), str(error))
    if not seen:
        raise DlrunError(f"none of {len(rows)} pictures looked at can be read; the first is {reason}", code=Exit.DATA)
    return seen
