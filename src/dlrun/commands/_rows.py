"""Files a user names, to rows a predictor takes: pictures, sounds, folders of them, tables, lines of plain text."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.commands._reading import data_error
from dlrun.errors import did_you_mean

if TYPE_CHECKING:
    from dlrun.contracts import DataSpec, Row

_TABLES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
           ".parquet": "parquet", ".pq": "parquet"}  # fmt: skip
_LINES = (".txt", ".text")
_MEDIA = {"image": "pictures", "audio": "recordings"}  # kinds of data whose examples are files


@dataclass(frozen=True)
class Example:
    """One row, the file it is from, and its number there (rows count from 0; None: the file is the row)."""

    row: Row
    file: str
    number: int | None = None

    @property
    def place(self) -> str:
        """What an error calls it."""
        return self.file if self.number is None else f"{self.file}, row {self.number}"

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that say where a prediction belongs."""
        return {"input": self.file} | ({} if self.number is None else {"row": self.number})


def examples(paths: Sequence[Path], spec: DataSpec) -> Iterator[Example]:
    """Every example of the files and folders, in order; files are opened when their turn comes.

    Raises: DlrunError (code DATA) at once for a path that is not there or does not fit the run, and later for a
    table that cannot be read.
    """
    files = [file for given in paths for file in _files(given, spec)]

    def each() -> Iterator[Example]:
        for file in files:
            if _is_lines(file, spec):
                yield from _of_lines(file, spec)
            elif _kind(file) is None:
                yield Example({_wanted(spec)[0]: str(file)}, str(file))
            elif spec.assets.get("kind") == "series":
                yield from _windows(file, spec)
            else:
                yield from _of_table(file, spec)

    return each()


def _files(path: Path, spec: DataSpec) -> list[Path]:
    """The path itself, or the pictures or recordings under a folder, sorted."""
    media = _MEDIA.get(spec.assets.get("kind", ""))
    if path.is_dir():
        found = sorted(_media_files(path, spec)) if media else []
        if not found:
            wants = media if media else f"a table with the columns {', '.join(_wanted(spec))}"
            raise data_error(f"{path}: nothing to predict in this folder", f"the run takes {wants}")
        return found
    if not path.exists():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise data_error(f"{path}: no such file or folder", did_you_mean(path.name, beside, "give a file or a folder"))
    if _kind(path) is None and not media and not _is_lines(path, spec):
        raise data_error(
            f"{path}: is not a table (csv, json lines, parquet)",
            f"the run takes tables with the columns {', '.join(_wanted(spec))}",
        )
    return [path]


def _media_files(folder: Path, spec: DataSpec) -> Iterator[Path]:
    from dlrun.data import _images, _sound

    suffixes = _images.SUFFIXES if spec.assets["kind"] == "image" else _sound.SUFFIXES
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(where) / name


def _kind(path: Path) -> str | None:
    return _TABLES.get(Path(path.name.lower().removesuffix(".gz")).suffix)


def _is_lines(path: Path, spec: DataSpec) -> bool:
    """Whether a file is one of plain text, and the run takes a text an example."""
    is_text = spec.assets.get("kind") == "text" and len(_wanted(spec)) == 1
    return is_text and Path(path.name.lower().removesuffix(".gz")).suffix in _LINES


def _wanted(spec: DataSpec) -> list[str]:
    """The columns that a table must have."""
    column = _media_column(spec)
    return [column] if column else list(spec.assets.get("columns", ()))


def _media_column(spec: DataSpec) -> str | None:
    """The column of pictures or recordings, where the run takes such."""
    kind = spec.assets.get("kind", "")
    return spec.assets[f"{kind}_column"] if kind in _MEDIA else None


# ---------------------------------------------------------------- plain text


def _of_lines(path: Path, spec: DataSpec) -> Iterator[Example]:
    """An example a line; empty lines are passed over. Rows count from 0, and every line counts."""
    number = -1
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            for number, line in enumerate(file):
                text = line.decode("utf-8-sig" if number == 0 else "utf-8")
                if text.strip():
                    yield Example({_wanted(spec)[0]: text.rstrip("\r\n")}, str(path), number)
    except UnicodeDecodeError as error:
        raise data_error(f"{path}, row {number}: is not UTF-8") from error
    except (OSError, EOFError) as error:
        raise data_error(f"{path}, row {number + 1}: cannot be read: {error}") from error
    if number < 0:
        raise data_error(f"{path} has no lines")


# ---------------------------------------------------------------- tables


def _of_table(path: Path, spec: DataSpec) -> Iterator[Example]:
    number = -1
    try:
        for number, row in enumerate(_rows(path)):
            if number == 0:
                _require_columns(path, row, spec)
            yield Example(_with_paths(row, path.parent, spec), str(path), number)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's and json's errors are ValueErrors
        reason = getattr(error, "msg", None) or str(error).partition("\n")[0]
        raise data_error(f"{path}, row {number + 1}: cannot be read: {reason}") from error
    if number < 0:
        raise data_error(f"{path} has no rows")


def _windows(path: Path, spec: DataSpec) -> Iterator[Example]:
    """Every window of a table in time; its number is that of the row after it, which may be the first to come."""
    columns, window, values = _wanted(spec), spec.sizes["window"], []
    for example in _of_table(path, spec):
        try:
            values.append([float(example.row[name]) for name in columns])
        except (TypeError, ValueError) as error:
            shown = next(name for name in columns if not _is_number(example.row[name]))
            raise data_error(f"{example.place}: '{shown}' is no number: {example.row[shown]!r}") from error
    if len(values) < window:
        raise data_error(f"{path} has {len(values)} rows; the run looks back on {window}")
    for end in range(len(values), window - 1, -spec.assets["stride"])[::-1]:
        yield Example({"series": values[end - window : end]}, str(path), end)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    kind = _kind(path)
    if kind == "parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
        return
    with _opened(path) as file:
        if kind == "json":
            yield from _json_rows(file)
        else:
            yield from csv.DictReader(file, delimiter="\t" if kind == "tsv" else ",", strict=True)


def _opened(path: Path) -> io.TextIOBase:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")  # type: ignore[return-value]
    return open(path, encoding="utf-8-sig", newline="")


def _json_rows(file: io.TextIOBase) -> Iterator[dict[str, Any]]:
    """Rows of json lines, or of one list of objects."""
    start = file.read(1)
    lines = json.loads(start + file.read()) if start == "[" else _json_lines(start, file)
    for row in lines:
        if not isinstance(row, dict):
            raise ValueError('an object is expected, such as {"column": value}')
        yield row


def _json_lines(start: str, file: io.TextIOBase) -> Iterator[Any]:
    for line in file:
        if (line := start + line).strip():
            yield json.loads(line)
        start = ""


def _require_columns(path: Path, row: Row, spec: DataSpec) -> None:
    if any(name in row for name in spec.assets.get("instead", ())):
        return
    for name in _wanted(spec):
        if name not in row and not (name == _media_column(spec) and spec.assets["kind"] in row):
            raise data_error(
                f"{path} has no column '{name}'; it has {', '.join(map(str, row)) or 'none'}",
                did_you_mean(name, map(str, row), f"the run was trained with {', '.join(_wanted(spec))}"),
            )


def _with_paths(row: Row, folder: Path, spec: DataSpec) -> Row:
    """The row with the path of a picture or recording read from the table's folder, as in training."""
    name = _media_column(spec)
    if name is None:
        return row
    name = name if name in row else spec.assets["kind"]
    given = row.get(name)
    if given is None:
        return row
    if isinstance(given, str):
        return {**row, name: str(folder / Path(given).expanduser())}
    if isinstance(given, dict) and given.get("bytes") is None and given.get("path"):
        return {**row, name: {**given, "path": str(folder / Path(given["path"]).expanduser())}}
    return row
