"""Rows of text in memory: what each says and where it is from; and the splits that are made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from dlrun.contracts import Split
from dlrun.data._assemble import Portion
from dlrun.data._bad import BadRows
from dlrun.data._ragged import RaggedSplit
from dlrun.data._source import Source
from dlrun.data._texts import read_texts
from dlrun.errors import DlrunError, Exit


@dataclass(frozen=True)
class TextRows:
    """The good rows of one given split.

    name: what errors call their source.   rows_N: int64, their numbers there.
    texts: what they say, by what it is for.   labels: int64 [N] classes, or float32 [N, C] zeros and ones.
    """

    name: str
    rows_N: np.ndarray
    texts: dict[str, list[str]]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows_N)

    def place(self, index: int) -> str:
        """Where a row is, for an error."""
        return f"{self.name}, row {self.rows_N[index]}"

    def digest(self) -> bytes:
        """A hash of all that is said."""
        total = hashlib.blake2b(self.rows_N.tobytes(), digest_size=16)
        for name, texts in self.texts.items():
            total.update(f"\x1d{name}\x1d".encode())
            total.update("\x1f".join(texts).encode())
        total.update(b"" if self.labels is None else self.labels.tobytes())
        return total.digest()


def read_rows(source: Source, columns: Mapping[str, tuple[str, str]], bad: BadRows) -> TextRows:
    """The rows whose every text can be read.

    columns: for each field the setting that names its column, and the column.
    """
    cells = {field: read_texts(source, setting, column, bad) for field, (setting, column) in columns.items()}
    return good_rows(source, cells)


def good_rows(source: Source, cells: Mapping[str, list]) -> TextRows:
    """Those rows that have something in every field. Raises DlrunError where there is none."""
    is_good_N = np.array([all(value is not None for value in row) for row in zip(*cells.values(), strict=True)], bool)
    if not is_good_N.any():
        raise DlrunError(f"{source.name}: there is no row that can be read", code=Exit.DATA)
    rows_N = np.flatnonzero(is_good_N).astype(np.int64)
    return TextRows(source.name, rows_N, {field: [values[row] for row in rows_N] for field, values in cells.items()})


def take(whole: Mapping[str, RaggedSplit], parts: Mapping[str, Portion]) -> dict[str, Split]:
    """The splits, in their usual order, out of the rows of each given one."""
    return {
        name: whole[parts[name].source].take(torch.from_numpy(parts[name].rows))
        for name in ("train", "valid", "test")
        if name in parts
    }


def fingerprint(given: Mapping[str, TextRows], parts: Mapping[str, Portion]) -> str:
    """A hash of what is in the splits, and of which rows are whose."""
    total = hashlib.blake2b(digest_size=16)
    for name, rows in sorted(given.items()):
        total.update(name.encode() + rows.digest())
    for name, part in sorted(parts.items()):
        total.update(f"{name}:{part.source}:".encode() + part.rows.tobytes())
    return total.hexdigest()
