"""The two kinds of split: decoded once and held as tensors, or decoded when asked for. Both give the same batches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from dlrun.contracts import Batch
from dlrun.data._bad import BadRows
from dlrun.data._images import strictly
from dlrun.errors import DlrunError, Exit
from dlrun.machine import free_memory_bytes

# Of the memory that is free, what the decoded rows may take; the rest is the model's and the system's.
_SHARE_OF_MEMORY = 0.25
_BLOCK_BYTES = 4 << 20  # rows that a thread reads at once


class Reader(Protocol):
    """Rows of one source as arrays of one or several fields of the batch."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory."""
        ...

    @property
    def is_slow(self) -> bool:
        """Whether reading takes long enough for threads to pay, and leaves them free to run."""
        ...

    def read(self, rows: np.ndarray, bad: BadRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The fields of these row numbers, and which rows are good (bool); the others hold anything."""
        ...

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of what these rows are read from."""
        ...


class MemorySplit:
    """Rows of tensors that other splits may share.

    fields: "id" and the others, their first dimension the rows held.
    at_N: which of these rows are the split's, in order (None: all).
    """

    in_memory = True

    def __init__(self, fields: dict[str, Tensor], at_N: Tensor | None = None) -> None:
        self.fields, self.at_N = fields, at_N

    def __len__(self) -> int:
        return len(self.fields["id"]) if self.at_N is None else len(self.at_N)

    def gather(self, rows_B: Tensor) -> Batch:
        """The fields of these rows of the split."""
        at_B = rows_B if self.at_N is None else self.at_N[rows_B]
        return {name: field.index_select(0, at_B) for name, field in self.fields.items()}


class StreamSplit:
    """Rows decoded when gathered. rows_N: row numbers in the source."""

    in_memory = False

    def __init__(self, readers: Sequence[Reader], rows_N: np.ndarray, bad: BadRows) -> None:
        self.readers, self.rows_N, self.bad = readers, rows_N, bad

    def __len__(self) -> int:
        return len(self.rows_N)

    def gather(self, rows_B: Tensor) -> Batch:
        """The fields of these rows of the split; rows skipped as bad are left out."""
        with strictly():
            fields, is_good = _read(self.readers, self.rows_N[rows_B.numpy()], self.bad)
        if not is_good.all():
            fields = {name: values[is_good] for name, values in fields.items()}
        return {name: torch.from_numpy(values) for name, values in fields.items()}


def hold(readers: Sequence[Reader], parts: Mapping[str, np.ndarray], bad: BadRows) -> dict[str, MemorySplit]:
    """In-memory splits of one source, without the rows that are skipped as bad. parts: each split's row numbers.

    Raises: DlrunError (code DATA) where that leaves a split without rows.
    """
    rows = np.unique(np.concatenate(list(parts.values())))
    with strictly():
        arrays, is_good = _read_whole(readers, rows, bad)
    fields = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def held(name: str, part: np.ndarray) -> MemorySplit:
        at = np.searchsorted(rows, part)
        kept = at[is_good[at]]
        if len(part) and not len(kept):
            raise DlrunError(f"data: {name} has no rows; {'; '.join(bad.notes())}", "mend the data", Exit.DATA)
        return MemorySplit(fields, None if len(kept) == len(rows) else torch.from_numpy(kept))

    return {name: held(name, part) for name, part in parts.items()}


def stream(readers: Sequence[Reader], parts: Mapping[str, np.ndarray], bad: BadRows) -> dict[str, StreamSplit]:
    """Streaming splits of one source, as `hold`."""
    return {name: StreamSplit(readers, part, bad) for name, part in parts.items()}


def fits(memory: Literal["auto", "always", "never"], num_bytes: int) -> bool:
    """Whether to hold this much: as told, else if it is at most a quarter of the free memory of this process."""
    if memory != "auto":
        return memory == "always"
    return num_bytes <= _SHARE_OF_MEMORY * free_memory_bytes() / _processes()


def _processes() -> int:
    """Training processes on this machine, as torchrun says; each holds its own copy."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _read(readers: Sequence[Reader], rows: np.ndarray, bad: BadRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """ "id" and the fields of every reader, and which rows are good to all of them."""
    fields, is_good = {"id": rows}, np.ones(len(rows), dtype=bool)
    for reader in readers:
        values, is_read = reader.read(rows, bad)
        fields |= values
        is_good &= is_read
    return fields, is_good


def _read_whole(readers: Sequence[Reader], rows: np.ndarray, bad: BadRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`_read` by several threads, a block of rows each, where that pays: PIL decodes without holding Python up."""
    num_threads = len(os.sched_getaffinity(0)) // _processes() if hasattr(os, "sched_getaffinity") else 1
    at_once = max(1, _BLOCK_BYTES // sum(reader.row_bytes for reader in readers))
    if num_threads < 2 or len(rows) <= at_once or not any(reader.is_slow for reader in readers):
        return _read(readers, rows, bad)
    first, is_good = _read(readers, rows[:at_once], bad)
    whole = {name: np.empty((len(rows), *values.shape[1:]), values.dtype) for name, values in first.items()}
    all_good = np.empty(len(rows), dtype=bool)

    def put(start: int, fields: dict[str, np.ndarray], is_good: np.ndarray) -> None:
        for name, values in fields.items():
            whole[name][start : start + len(values)] = values
        all_good[start : start + len(is_good)] = is_good

    def block(start: int) -> BadRows:
        found = bad.apart()
        put(start, *_read(readers, rows[start : start + at_once], found))
        return found

    put(0, first, is_good)
    pool = ThreadPoolExecutor(num_threads)
    try:
        for found in pool.map(block, range(at_once, len(rows), at_once)):
            bad.add(found)  # in order of the rows: the first to be named is the first there is
    finally:
        pool.shutdown(cancel_futures=True)
    return whole, all_good
