"""The pictures of a source, decoded into one array of pixels."""

from __future__ import annotations

import math

import numpy as np

from dlrun.data._bad import BadRows
from dlrun.data._cells import Cells
from dlrun.data._images import BadPicture, Decoder
from dlrun.errors import DlrunError

_SLOW_BYTES = 64 * 64  # of pixels: smaller pictures are decoded faster than threads take turns


class Pictures:
    """The pictures of a column as "image"; with `sized` the height and width of each before scaling, as "size"."""

    def __init__(self, cells: Cells, decoder: Decoder, sized: bool = False) -> None:
        self.cells, self.decoder, self.sized = cells, decoder, sized

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return math.prod(self.decoder.shape)

    @property
    def is_slow(self) -> bool:
        """Whether threads pay."""
        return self.row_bytes >= _SLOW_BYTES

    def read(self, rows: np.ndarray, bad: BadRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """ "image" uint8 [len(rows), C, H, W], "size" int64 [len(rows), 2] if asked for, and which could be read."""
        values = np.zeros((len(rows), *self.decoder.shape), dtype=np.uint8)
        sizes = np.ones((len(rows), 2), dtype=np.int64)
        is_good = np.ones(len(rows), dtype=bool)
        for index, row in enumerate(rows.tolist()):
            try:
                decoded = self.decoder.decode(self.cells.given(row), self.cells.source.folder)
                values[index] = decoded.pixels
                if self.sized:
                    sizes[index] = decoded.height, decoded.width
            except BadPicture as error:
                is_good[index] = False
                bad.report(self.cells.place(row), str(error))
            except DlrunError as error:
                raise DlrunError(f"{self.cells.place(row)}: {error.message}", error.hint, error.code) from error
        return {"image": values} | ({"size": sizes} if self.sized else {}), is_good

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of the undecoded rows."""
        return self.cells.digest(rows)
