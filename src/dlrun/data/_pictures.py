"""The picture column of a source: its cells found without decoding, and decoded into one array of pixels."""

from __future__ import annotations

import hashlib
import math
import os
from bisect import bisect_right
from itertools import accumulate

import numpy as np

from dlrun.data._bad import BadRows
from dlrun.data._images import BadPicture, Decoder, strictly
from dlrun.data._source import Source
from dlrun.errors import DlrunError

# The fingerprint reads every embedded picture up to this many, and a sample of more or of those in files.
_HASHED_WHOLE = 100_000
_HASHED_SAMPLE = 2_000


class Pictures:
    """Pictures as bytes, as {"bytes", "path"}, or as paths relative to the source's folder."""

    field = "image"

    def __init__(self, source: Source, column: str, decoder: Decoder) -> None:
        self.source, self.column, self.decoder = source, column, decoder
        self._chunks: list[_Chunk] = []

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_chunks": []}  # Arrow arrays stay behind when a worker process gets this

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return math.prod(self.decoder.shape)

    def given(self, row: int) -> str | memoryview | None:
        """The row's picture in a form that `open_picture` takes."""
        chunk, index = self._locate(row)
        data = chunk.data(index)
        return chunk.path(index) if data is None else data

    def place(self, row: int) -> str:
        """Where a picture is, with its path where it has one."""
        chunk, index = self._locate(row)
        path = chunk.path(index)
        return self.source.place(row) + (f" ({path})" if path else "")

    def read(self, rows: np.ndarray, bad: BadRows) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [len(rows), C, H, W] and which could be read (bool); the others are zero."""
        values = np.zeros((len(rows), *self.decoder.shape), dtype=np.uint8)
        is_good = np.ones(len(rows), dtype=bool)
        with strictly():
            for index, row in enumerate(rows.tolist()):
                try:
                    values[index] = self.decoder.decode(self.given(row), self.source.folder)
                except BadPicture as error:
                    is_good[index] = False
                    bad.report(self.place(row), str(error))
                except DlrunError as error:
                    raise DlrunError(f"{self.place(row)}: {error.message}", error.hint, error.code) from error
        return values, is_good

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of the undecoded rows: of all sizes or paths, and of all bytes where they are few and at hand."""
        total = hashlib.blake2b(digest_size=16)
        given = [self.given(row) for row in rows.tolist()]
        is_whole = len(given) <= _HASHED_WHOLE and not any(isinstance(item, str) for item in given)
        step = 1 if is_whole else max(1, len(given) // _HASHED_SAMPLE)
        for item in given:
            total.update(f"{item}:{self._file_bytes(item)};".encode() if isinstance(item, str) else _size(item))
        for item in given[::step]:
            total.update(self._file_content(item) if isinstance(item, str) else item or b"")
        return total.digest()

    def _locate(self, row: int) -> tuple[_Chunk, int]:
        """The chunk that holds a row, and its place there."""
        if not self._chunks:
            self._chunks = [_Chunk(chunk) for chunk in self.source.table.column(self.column).chunks if len(chunk)]
            self._ends = list(accumulate(chunk.length for chunk in self._chunks))
        index = bisect_right(self._ends, row)
        return self._chunks[index], row - (self._ends[index - 1] if index else 0)

    def _path(self, path: str) -> str:
        path = os.path.expanduser(path)
        return path if self.source.folder is None else os.path.join(self.source.folder, path)

    def _file_bytes(self, path: str) -> int:
        try:
            return os.stat(self._path(path)).st_size
        except OSError:
            return -1

    def _file_content(self, path: str) -> bytes:
        if not os.path.isfile(self._path(path)):
            return b""
        try:
            with open(self._path(path), "rb") as file:
                return file.read()
        except OSError:
            return b""


def _size(data: memoryview | None) -> bytes:
    return b"-;" if data is None else b"%d;" % len(data)


class _Chunk:
    """One chunk of a picture column, whatever its type, as bytes and paths; either may be None."""

    def __init__(self, chunk) -> None:
        import pyarrow.types as types

        self.length, kind = len(chunk), chunk.type
        self._bytes = self._paths = None
        self._validity = chunk if chunk.null_count else None
        if types.is_struct(kind):
            names = [kind.field(index).name for index in range(kind.num_fields)]
            self._bytes = chunk.field("bytes") if "bytes" in names else None
            self._paths = chunk.field("path") if "path" in names else None
        elif types.is_binary(kind) or types.is_large_binary(kind):
            self._bytes = chunk
        elif types.is_string(kind) or types.is_large_string(kind):
            self._paths = chunk
        if self._bytes is None and self._paths is None:
            raise DlrunError(f"a column of type {kind} holds no pictures", "name another column: data.image=COLUMN")

    def data(self, index: int) -> memoryview | None:
        if self._bytes is None or self._is_null(index):
            return None
        buffer = self._bytes[index].as_buffer()
        return None if buffer is None else memoryview(buffer)

    def path(self, index: int) -> str | None:
        return None if self._paths is None or self._is_null(index) else self._paths[index].as_py()

    def _is_null(self, index: int) -> bool:
        return self._validity is not None and not self._validity[index].is_valid
