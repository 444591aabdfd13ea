"""What pictures look like, where the user has not said: a sample of them is looked at."""

from __future__ import annotations

import numpy as np

from dlrun.data._bad import BadRows
from dlrun.data._images import BadPicture, Decoder, is_grey, open_picture, reading, strictly, upright
from dlrun.data._pictures import Pictures
from dlrun.data._source import Source
from dlrun.errors import DlrunError, Exit

_SAMPLE = 64


def survey(
    source: Source, column: str, rows: np.ndarray, image_size: int | None, channels: int | None, bad: BadRows
) -> Decoder:
    """What to make of the pictures: as set, else the size they share and grey if all of the sample are.

    Raises: DlrunError for pictures of several sizes where image_size is None.
    """
    pictures = Pictures(source, column, Decoder(1, 1, 1))
    seen = _look(pictures, rows[:: max(1, len(rows) // _SAMPLE)], bad)
    if channels is None:
        found = 1 if all(grey for _, _, grey in seen) else 3
        guessed = found == 1
    else:
        found, guessed = channels, False
    if image_size is not None:
        return Decoder(found, image_size, image_size, True, guessed)
    (first, size, _), *others = seen
    for row, other, _ in others:
        if other != size:
            raise DlrunError(
                f"pictures of several sizes: {pictures.place(first)} is {size[0]}x{size[1]}, "
                f"{pictures.place(row)} is {other[0]}x{other[1]}",
                f"scale them all: data.image_size={max(size)}",
            )
    width, height = size
    return Decoder(found, height, width, False, guessed)


def _look(pictures: Pictures, rows: np.ndarray, bad: BadRows) -> list[tuple[int, tuple[int, int], bool]]:
    """Row, (width, height) and greyness of those that can be opened; pixels are not decoded."""
    seen, reason = [], ""
    with strictly():
        for row in rows.tolist():
            try:
                with reading():
                    picture = upright(open_picture(pictures.given(row), pictures.source.folder))
                seen.append((row, picture.size, is_grey(picture)))
            except BadPicture as error:
                reason = reason or f"{pictures.place(row)}: {error}"
                bad.report(pictures.place(row), str(error))
    if not seen:
        raise DlrunError(f"none of {len(rows)} pictures looked at can be read; the first is {reason}", code=Exit.DATA)
    return seen
