"""Pictures with a class for each pixel: read together, as a mask is only good beside a picture of its size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlrun.contracts import IGNORED
from dlrun.data._bad import BadRows
from dlrun.data._cells import Cells
from dlrun.data._coding import Coding, mask_values
from dlrun.data._images import BadPicture
from dlrun.data._pictures import Pictures
from dlrun.errors import DlrunError


class Masks:
    """The fields of the pictures (with their sizes), and "mask" from a column of the same source.

    height, width: of every mask.   resize: scale them to that, by nearest pixel; else another size is an error.
    """

    is_slow = True

    def __init__(self, pictures: Pictures, cells: Cells, coding: Coding, height: int, width: int, resize: bool) -> None:
        assert pictures.sized
        self.pictures, self.cells, self.coding = pictures, cells, coding
        self.height, self.width, self.resize = height, width, resize

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return self.pictures.row_bytes + self.height * self.width

    def read(self, rows: np.ndarray, bad: BadRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """As `Pictures`, and "mask" uint8 [len(rows), height, width]; a row is good if both could be read."""
        fields, is_good = self.pictures.read(rows, bad)
        masks = np.full((len(rows), self.height, self.width), IGNORED, dtype=np.uint8)
        for index in np.flatnonzero(is_good).tolist():
            row = int(rows[index])
            try:
                masks[index] = self._mask(row, tuple(fields["size"][index].tolist()))
            except BadPicture as error:
                is_good[index] = False
                bad.report(self._place(row), str(error))
            except DlrunError as error:
                raise DlrunError(f"{self._place(row)}: {error.message}", error.hint, error.code) from error
        return fields | {"mask": masks}, is_good

    def _mask(self, row: int, size: tuple[int, ...]) -> np.ndarray:
        """uint8 [height, width]. size: height and width of the row's picture."""
        if self.cells.is_empty(row):
            raise BadPicture("no mask")
        values = mask_values(self.cells.given(row), self.cells.source.folder)
        if values.shape != size:
            raise BadPicture(other_size(values.shape, size))
        coded = self.coding.encode(values)
        if coded.shape == (self.height, self.width):
            return coded
        if not self.resize:
            raise DlrunError(
                f"masks of several sizes: {self.width}x{self.height} and {coded.shape[1]}x{coded.shape[0]}",
                f"scale them all: 'data.mask_size=[{self.height},{self.width}]'",
            )
        return _nearest(coded, self.height, self.width)

    def _place(self, row: int) -> str:
        """Where a mask is, or the picture that has none."""
        return (self.pictures.cells if self.cells.is_empty(row) else self.cells).place(row)

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of the undecoded pictures and masks, and of what the masks' values mean."""
        return self.pictures.digest(rows) + self.cells.digest(rows) + repr(self.coding).encode()


def other_size(mask: Sequence[int], picture: Sequence[int]) -> str:
    """What is wrong with a mask of another size (height, width) than its picture."""
    return f"the mask is {mask[1]}x{mask[0]}, and its picture is {picture[1]}x{picture[0]}"


def _nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
