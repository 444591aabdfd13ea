"""The input pipeline of a run on a mixed table: new rows by the names of their columns to numbers and categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dlrun.contracts import Batch, DataSpec, Row
from dlrun.data._mixed_cells import listed_numbers, listed_words
from dlrun.data._mixed_columns import FILE, MixedColumns, Unknown
from dlrun.errors import DlrunError, Exit, did_you_mean


class MixedInputs:
    """Rows are scaled and coded when they are read, so there is nothing left to prepare."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.columns = MixedColumns.from_bytes(spec.files[FILE])
        self._num_rows = 0
        self._unknown: dict[str, Unknown] = {}

    def encode(self, rows: Sequence[Row]) -> Batch:
        """ "numbers" float32 [B, F] and "categories" int64 [B, M]; an empty cell is a missing one.

        Raises: DlrunError naming the row and the column that is not there, or holds no number where one belongs.
        """
        missing = frozenset(self.columns.missing)
        numbers = {}
        for column in self.columns.numbers:
            numbers[column.name], bad = listed_numbers(_cells(rows, column.name), missing)
            for index, said in bad.items():
                raise DlrunError(f"row {index}: '{column.name}' is '{said}'; a number is needed", code=Exit.DATA)
        words = {column.name: listed_words(_cells(rows, column.name), missing) for column in self.columns.categories}
        fields = self.columns.fields(numbers, words, len(rows))
        for column in self.columns.categories:
            if found := column.unknown(words[column.name]):
                count, first, word = self._unknown.get(column.name, (0, self._num_rows + found.first, found.word))
                self._unknown[column.name] = Unknown(count + found.count, first, word)
        self._num_rows += len(rows)
        return {"id": torch.arange(len(rows))} | {name: torch.from_numpy(array) for name, array in fields.items()}

    def notes(self) -> list[str]:
        """The columns in which rows encoded so far have a category that training never saw."""
        return [found.note(name, f"row {found.first}") for name, found in self._unknown.items()]

    def prepare(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch


def _cells(rows: Sequence[Row], name: str) -> list[object]:
    for index, row in enumerate(rows):
        if name not in row:
            raise DlrunError(f"row {index} has no '{name}'", did_you_mean(name, map(str, row)))
    return [row[name] for row in rows]
