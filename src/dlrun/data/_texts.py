"""Columns of text of a source: which they are, what each row says, and what is wrong with those that say nothing."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dlrun.data._bad import BadRows
from dlrun.data._files import find
from dlrun.data._hub import any_sources
from dlrun.data._source import Source
from dlrun.errors import DlrunError, Exit, did_you_mean


def table_sources(
    path: str, config: str | None, revision: str | None, splits: Mapping[str, str] | None, needs_train: bool
) -> tuple[dict[str, Source], list[str]]:
    """The rows of each split of a local table, else of the hub data set of that name, and what was guessed.

    Raises: DlrunError, with the line of a file where it is no UTF-8.
    """
    try:
        return any_sources(path, config, revision, splits, needs_train)
    except DlrunError as error:
        if "codec can't decode" in error.message:
            parts, _ = find(path, splits)
            for file in (file for part in parts.values() for file in part.files):
                decoded(content_of(file), file.name)
        raise


def content_of(file: Path) -> bytes:
    """The bytes of a file, unpacked if it ends in .gz. Raises DlrunError with code DATA."""
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.name.lower().endswith(".gz") else content
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DlrunError(f"{file.name} cannot be read: {reason}", code=Exit.DATA) from error


def decoded(content: bytes, name: str) -> str:
    """The text of a file, its lines ending in a line feed. Raises DlrunError naming the line that is no UTF-8."""
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DlrunError(
            f"{name}, line {line}: is not UTF-8 (byte 0x{content[error.start]:02x})",
            "write the file anew in UTF-8, e.g. iconv -f latin1 -t utf-8",
            Exit.DATA,
        ) from error


def text_column(source: Source, setting: str, wanted: str | None, usual: Sequence[str]) -> tuple[str, list[str]]:
    """The column of text that a setting names, else one of the usual names, else the only one; and what was guessed."""
    names = list(_columns(source))
    if wanted is not None:
        if wanted not in names:
            hint = did_you_mean(wanted, names)
            raise DlrunError(f"data.{setting}: {source.name} has no column '{wanted}'", hint)
        return wanted, []
    texts = [name for name in names if _is_text(_columns(source)[name].type)]
    found = next((name for word in usual for name in texts if name.lower() == word), None)
    if found is None and len(texts) == 1:
        found = texts[0]
    if found is None:
        raise DlrunError(
            f"{source.name}: which column is the {setting}? It has {', '.join(names[:12])}",
            f"name it: data.{setting}=COLUMN",
        )
    return found, [f"{setting} column: {found} (guessed)"]


def read_texts(source: Source, setting: str, column: str, bad: BadRows) -> list[str | None]:
    """What each row says; None where it says nothing or is no UTF-8, which makes a bad row.

    Raises: DlrunError if the column is not there or holds no text.
    """
    text_column(source, setting, column, ())
    cells = _columns(source)[column]
    if not _is_text(cells.type) and not _is_whole(cells.type):
        raise DlrunError(f"data.{setting}: {source.name}: column '{column}' holds {cells.type}; text is needed")
    found: list[str | None] = []
    for row, text in enumerate(_spoken(cells)):
        reason = f"column '{column}' is not UTF-8" if isinstance(text, UnicodeDecodeError) else ""
        if not isinstance(text, str) or not text.strip():
            bad.report(source.place(row), reason or f"there is no text in column '{column}'")
            text = None
        found.append(text)
    return found


def optional_texts(source: Source, column: str) -> list[str]:
    """What each row says, perhaps nothing; the column may be missing."""
    cells = _columns(source).get(column)
    if cells is None or not _is_text(cells.type):
        return [""] * len(source)
    return [text if isinstance(text, str) else "" for text in _spoken(cells)]


def list_cells(source: Source, setting: str, column: str) -> list:
    """The lists of a column, as Python's. Raises DlrunError if the column is not there, holds none, or is no UTF-8."""
    import pyarrow.types as types

    text_column(source, setting, column, ())
    cells = _columns(source)[column]
    if not (types.is_list(cells.type) or types.is_large_list(cells.type)):
        raise DlrunError(f"data.{setting}: {source.name}: column '{column}' holds {cells.type}; lists are needed")
    try:
        return cells.to_pylist()
    except UnicodeDecodeError:
        for row in range(len(cells)):
            try:
                cells[row].as_py()
            except UnicodeDecodeError as error:
                raise DlrunError(f"{source.place(row)}: column '{column}' is not UTF-8", code=Exit.DATA) from error
        raise


def _columns(source: Source) -> dict:
    """Every column by its name, and the fields of those that hold one text in each of several languages."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    found = {}
    for name in source.columns:
        cells = source.table.column(name)
        found[name] = cells
        if types.is_struct(cells.type):
            for index in range(cells.type.num_fields):
                field = cells.type.field(index)
                if _is_text(field.type):
                    found.setdefault(
                        field.name, pc.call_function("struct_field", [cells], pc.StructFieldOptions([index]))
                    )
    return found


def _is_text(kind) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_whole(kind) -> bool:
    """Numbers that a csv reader made of digits."""
    import pyarrow.types as types

    return types.is_integer(kind)


def _spoken(cells) -> Iterator[object]:
    """Each cell as text, None, or the error that kept it from being read."""
    import pyarrow as pa

    if _is_whole(cells.type):
        cells = cells.cast(pa.string())
    try:
        yield from cells.to_pylist()  # all at once, so nothing was given yet where it fails
    except UnicodeDecodeError:
        for content in cells.cast(pa.large_binary()).to_pylist():
            try:
                yield None if content is None else content.decode()
            except UnicodeDecodeError as error:
                yield error
