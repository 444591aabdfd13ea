"""Columns of numbers of a source as float32 rows: features to learn from, or targets to predict."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

from dlrun.data._bad import BadRows
from dlrun.data._mixed_cells import is_text, read_numbers
from dlrun.data._source import Source

_HASHED_AT_ONCE = 65_536  # rows


class Numbers:
    """A row of numbers for each row of the source; a cell that is empty, infinite, too large or a word makes a bad row.

    field: what the batch calls them.
    """

    is_slow = False

    def __init__(self, source: Source, columns: tuple[str, ...], field: Literal["features", "target"]) -> None:
        self.source, self.columns, self.field = source, columns, field

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory."""
        return 4 * len(self.columns)

    def read(self, rows: np.ndarray, bad: BadRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """float32 [len(rows), F] and which rows are finite (bool); the others are zero."""
        values = np.empty((len(rows), len(self.columns)), dtype=np.float32)
        with np.errstate(over="ignore"):
            for index, cells in enumerate(self._cells(rows)):
                values[:, index] = cells
        is_finite = np.isfinite(values)
        is_good = np.all(is_finite, axis=1)
        for index in np.flatnonzero(~is_good).tolist():
            bad.report(*self._wrong(int(rows[index]), self.columns[int(np.argmin(is_finite[index]))]))
        values[~is_good] = 0
        return {self.field: values}, is_good

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of the columns' names and of all their cells."""
        total = hashlib.blake2b("\x1f".join(self.columns).encode(), digest_size=16)
        for start in range(0, len(rows), _HASHED_AT_ONCE):
            for cells in self._cells(rows[start : start + _HASHED_AT_ONCE]):
                total.update(cells.tobytes())
        return total.digest()

    def _wrong(self, row: int, column: str) -> tuple[str, str]:
        """The place of a row, and what is wrong with its cell."""
        cell = self.source.table.column(column)[row].as_py()
        is_word = isinstance(cell, str) and bool(cell.strip())
        reason = f"'{cell}' in column '{column}' is no number" if is_word else f"no finite number in column '{column}'"
        return self.source.place(row), reason

    def _cells(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """float64 cells of these rows, a column at a time; an empty cell is nan."""
        import pyarrow as pa
        import pyarrow.compute as pc

        taken = pa.array(rows)
        for name in self.columns:
            cells = self.source.table.column(name).take(taken)
            if is_text(cells.type):
                yield read_numbers(cells, frozenset()).values
                continue
            cells = pc.cast(cells, pa.uint8()) if pa.types.is_boolean(cells.type) else cells
            yield pc.cast(cells, pa.float64(), safe=False).to_numpy()
