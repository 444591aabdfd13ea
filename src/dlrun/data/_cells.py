"""A column of pictures, nothing decoded: the bytes or the path of each row's, found without a copy."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from itertools import accumulate

import numpy as np

from dlrun.data._images import BadPicture
from dlrun.data._source import Source
from dlrun.errors import DlrunError

# The fingerprint reads every embedded picture up to this many, and a sample of more or of those in files.
_HASHED_WHOLE = 100_000
_HASHED_SAMPLE = 2_000


class Cells:
    """Pictures as bytes, as {"bytes", "path"}, or as paths relative to the source's folder or in its archive."""

    def __init__(self, source: Source, column: str) -> None:
        self.source, self.column = source, column
        self._chunks: list[_Chunk] = []

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_chunks": []}  # Arrow arrays stay behind when a worker process gets this

    def given(self, row: int) -> str | memoryview | bytes | None:
        """The row's picture in a form that `open_picture` takes. Raises BadPicture where an archive lacks it."""
        found = self._found(row)
        if not isinstance(found, str) or self.source.archive is None:
            return found
        try:
            return self.source.archive.read(found)
        except DlrunError as error:
            raise BadPicture(error.message) from error

    def is_empty(self, row: int) -> bool:
        """Whether there is neither bytes nor a path."""
        return self._found(row) is None

    def _found(self, row: int) -> str | memoryview | None:
        """The row's path or bytes."""
        chunk, index = self._locate(row)
        data = chunk.data(index)
        return chunk.path(index) if data is None else data

    def place(self, row: int) -> str:
        """Where a picture is, with its path where it has one."""
        chunk, index = self._locate(row)
        path = chunk.path(index)
        return self.source.place(row) + (f" ({path})" if path else "")

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of the undecoded rows: of all sizes or paths, and of all bytes where they are few and at hand."""
        total = hashlib.blake2b(digest_size=16)
        found = [self._found(row) for row in rows.tolist()]
        is_whole = len(found) <= _HASHED_WHOLE and not any(isinstance(item, str) for item in found)
        step = 1 if is_whole else max(1, len(found) // _HASHED_SAMPLE)
        for item in found:
            total.update(f"{item}:{self._stated(item)};".encode() if isinstance(item, str) else _size(item))
        for item in found[::step]:
            total.update(self._file_content(item) if isinstance(item, str) else item or b"")
        return total.digest()

    def _locate(self, row: int) -> tuple[_Chunk, int]:
        """The chunk that holds a row, and its place there."""
        if not self._chunks:
            chunks = [_Chunk(chunk) for chunk in self.source.table.column(self.column).chunks if len(chunk)]
            self._ends = list(accumulate(chunk.length for chunk in chunks))
            self._chunks = chunks  # last: other threads may be asking
        index = bisect_right(self._ends, row)
        return self._chunks[index], row - (self._ends[index - 1] if index else 0)

    def _path(self, path: str) -> str:
        path = os.path.expanduser(path)
        return path if self.source.folder is None else os.path.join(self.source.folder, path)

    def _stated(self, path: str) -> object:
        """Bytes of a file; of an archive's its checksum too."""
        if self.source.archive is not None:
            return self.source.archive.checksum(path)
        try:
            return os.stat(self._path(path)).st_size
        except OSError:
            return -1

    def _file_content(self, path: str) -> bytes:
        if self.source.archive is not None or not os.path.isfile(self._path(path)):
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
