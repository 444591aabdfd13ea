"""The two kinds of split: decoded once and held as tensors, or decoded when asked for. Both give the same batches."""

from __future__ import annotations

import os
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from dlrun.contracts import Batch
from dlrun.data._bad import BadRows
from dlrun.machine import free_memory_bytes

# Of the memory that is free, what the decoded rows may take; the rest is the model's and the system's.
_SHARE_OF_MEMORY = 0.25


class Reader(Protocol):
    """Rows of one source as arrays of one field of the batch."""

    field: str

    @property
    def row_bytes(self) -> int: ...

    def read(self, rows: np.ndarray, bad: BadRows) -> tuple[np.ndarray, np.ndarray]: ...

    def digest(self, rows: np.ndarray) -> bytes: ...


class MemorySplit:
    """Rows of tensors that other splits may share.

    fields: "id" and the others, their first dimension the rows held.
    at_N: which of these rows are the split's, in order (None: all).   is_good: which could be read (None: all).
    """

    in_memory = True

    def __init__(self, fields: dict[str, Tensor], at_N: Tensor | None = None, is_good: Tensor | None = None) -> None:
        self.fields, self.at_N, self.is_good = fields, at_N, is_good

    def __len__(self) -> int:
        return len(self.fields["id"]) if self.at_N is None else len(self.at_N)

    def gather(self, rows_B: Tensor) -> Batch:
        """The fields of these rows of the split; rows skipped as bad are left out."""
        at_B = rows_B if self.at_N is None else self.at_N[rows_B]
        if self.is_good is not None:
            at_B = at_B[self.is_good[at_B]]
        return {name: field.index_select(0, at_B) for name, field in self.fields.items()}


class StreamSplit:
    """Rows decoded when gathered. rows_N: row numbers in the source. labels_N: their class indices."""

    in_memory = False

    def __init__(self, reader: Reader, rows_N: np.ndarray, labels_N: np.ndarray, bad: BadRows) -> None:
        self.reader, self.rows_N, self.labels_N, self.bad = reader, rows_N, labels_N, bad

    def __len__(self) -> int:
        return len(self.rows_N)

    def gather(self, rows_B: Tensor) -> Batch:
        """The fields of these rows of the split; rows skipped as bad are left out."""
        at_B = rows_B.numpy()
        values, is_good = self.reader.read(self.rows_N[at_B], self.bad)
        if not is_good.all():
            at_B, values = at_B[is_good], values[is_good]
        arrays = {"id": self.rows_N[at_B], self.reader.field: values, "label": self.labels_N[at_B]}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def hold(reader: Reader, labels_N: np.ndarray, parts: dict[str, np.ndarray], bad: BadRows) -> dict[str, MemorySplit]:
    """In-memory splits of one source. labels_N: of all its rows. parts: each split's row numbers."""
    rows = np.unique(np.concatenate(list(parts.values())))
    values, is_good = reader.read(rows, bad)
    arrays = {"id": rows, reader.field: values, "label": labels_N[rows]}
    fields = {name: torch.from_numpy(array) for name, array in arrays.items()}
    good = None if is_good.all() else torch.from_numpy(is_good)

    def at(part: np.ndarray) -> Tensor | None:
        return None if len(part) == len(rows) else torch.from_numpy(np.searchsorted(rows, part))

    return {name: MemorySplit(fields, at(part), good) for name, part in parts.items()}


def stream(reader: Reader, labels_N: np.ndarray, parts: dict[str, np.ndarray], bad: BadRows) -> dict[str, StreamSplit]:
    """Streaming splits of one source, as `hold`."""
    return {name: StreamSplit(reader, part, labels_N[part], bad) for name, part in parts.items()}


def fits(memory: Literal["auto", "always", "never"], num_bytes: int) -> bool:
    """Whether to hold this much: as told, else if it is at most a quarter of the free memory of this process."""
    if memory != "auto":
        return memory == "always"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as torchrun says; each holds its own copy
    return num_bytes <= _SHARE_OF_MEMORY * free_memory_bytes() / processes
