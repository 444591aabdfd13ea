"""Who had to do with what, and when: the interactions of a table, or of a plain file of numbers, as they were found."""

# N rows

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlrun.data._bad import BadRows
from dlrun.data._columns import require
from dlrun.data._files import existing
from dlrun.data._mixed_cells import Words, read_numbers, read_words
from dlrun.data._source import Source
from dlrun.errors import DlrunError, Exit

_PLAIN = (".txt", ".dat", ".data", ".inter", ".edges")
_SEPARATORS = ("::", "\t", ",", ";", "|", " ")
_USUAL = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "customer", "customer_id", "member"),
    "item": ("item", "item_id", "itemid", "iid", "movie", "movieid", "movie_id", "product", "product_id", "asin",
             "book", "book_id", "parent_asin"),
    "rating": ("rating", "ratings", "score", "stars", "overall"),
    "time": ("time", "timestamp", "date", "datetime", "unixreviewtime"),
}  # fmt: skip


@dataclass(frozen=True)
class Interactions:
    """One row each, in the order of the file.

    users, items: words and their places.   ratings, times: float64 [N], or None where there are none.
    is_good: bool [N], what could be read.   columns: further columns, for features.   name: what errors call it.
    """

    name: str
    users: Words
    items: Words
    ratings: np.ndarray | None
    times: np.ndarray | None
    is_good: np.ndarray
    columns: Mapping[str, Any] = field(default_factory=dict)

    def place(self, row: int) -> str:
        """Where a row is, for an error; rows count from 0."""
        return f"{self.name}, row {row}"


@dataclass(frozen=True)
class Wanted:
    """The columns a user named, None where they are to be guessed. Features are columns of further facts."""

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    time: str | None = None
    user_features: tuple[str, ...] = ()
    item_features: tuple[str, ...] = ()


def read_interactions(path: str, wanted: Wanted, needs_rating: bool, bad: BadRows) -> tuple[Interactions, list[str]]:
    """The rows of one file, and sentences for what was guessed; a row without user, item or rating is a bad one."""
    place = existing(path)
    is_plain = place.is_file() and Path(place.name.lower().removesuffix(".gz")).suffix in _PLAIN
    source = _plain(place, bad) if is_plain else _table(path)
    named, notes = _columns(source, wanted)
    if needs_rating and "rating" not in named:
        raise DlrunError(f"data.rating: {source.name} has no column of ratings", "data.rating=COLUMN")
    column = source.table.column
    users, items = (read_words(column(named[role]), frozenset()) for role in ("user", "item"))
    ratings = _ratings(column(named["rating"])) if "rating" in named else None
    times = _times(source, named["time"]) if "time" in named else None
    is_good = np.ones(len(source), dtype=bool)
    lacking = {"user": users.codes < 0, "item": items.codes < 0}
    if needs_rating and ratings is not None:
        lacking["number in column 'rating'"] = np.isnan(ratings)
    if times is not None:
        lacking["time"] = np.isnan(times)
    for row in np.flatnonzero(np.logical_or.reduce(list(lacking.values()))).tolist():
        is_good[row] = False
        bad.report(source.place(row), f"no {next(what for what, is_bad in lacking.items() if is_bad[row])}")
    further = {name: column(name) for name in (*wanted.user_features, *wanted.item_features)}
    return Interactions(source.name, users, items, ratings, times, is_good, further), notes


def _table(path: str) -> Source:
    from dlrun.data._tables import local_sources

    sources, _ = local_sources(path, None, needs_train=False)
    if len(sources) != 1:
        raise DlrunError(
            f"data.path: {path} holds {' and '.join(sources)}; ratings are one file, and are split here",
            "data.path=FILE",
        )
    return next(iter(sources.values()))


def _plain(file: Path, bad: BadRows) -> Source:
    """Lines of two to four values: user, item, rating, time. Lines of another length are bad rows."""
    import pyarrow as pa
    import pyarrow.csv as arrow

    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if file.name.lower().endswith(".gz") else content
    except (OSError, EOFError) as error:
        raise DlrunError(f"{file.name} cannot be read: {error}", code=Exit.DATA) from error
    first = content[:10_000].decode(errors="replace").partition("\n")[0].strip()
    if not first:
        raise DlrunError(f"{file.name} has no rows", code=Exit.DATA)
    separator = next((mark for mark in _SEPARATORS if mark in first), " ")
    if len(separator) > 1:
        content, separator = content.replace(separator.encode(), b"\t"), "\t"
    cells = [cell.strip().strip('"') for cell in first.replace("::", "\t").split(separator)]
    has_header = any(cell.lower() in names for cell in cells for names in _USUAL.values())
    if not has_header and not 2 <= len(cells) <= 4:
        raise DlrunError(
            f"{file.name}: {len(cells)} values in the first line; user, item, rating and time are expected",
            "write a header line, and name the columns: data.user=COLUMN data.item=COLUMN",
            Exit.DATA,
        )
    names = cells if has_header else ["user", "item", "rating", "time"][: len(cells)]
    wrong: list[tuple[int, str]] = []

    def pass_over(row: Any) -> str:
        wrong.append((row.number - 1 - has_header, f"{row.actual_columns} values, not {row.expected_columns}"))
        return "skip"

    table = arrow.read_csv(
        io.BytesIO(content),
        arrow.ReadOptions(use_threads=False, column_names=names, skip_rows=int(has_header)),
        arrow.ParseOptions(delimiter=separator, invalid_row_handler=pass_over),
        arrow.ConvertOptions(strings_can_be_null=True, null_values=[""]),
    )
    for row, reason in wrong:
        bad.report(f"{file.name}, row {row}", reason)
    assert isinstance(table, pa.Table)
    return Source(table, file.name, file.parent)


def _columns(source: Source, wanted: Wanted) -> tuple[dict[str, str], list[str]]:
    """The column of each role that there is, and a sentence about those guessed."""
    named, guessed = {}, []
    for role, usual in _USUAL.items():
        if name := getattr(wanted, role):
            require(source, role, name)
            named[role] = name
            continue
        found = [name for name in source.columns if name.lower() in usual and name not in named.values()]
        if found:
            named[role] = min(found, key=lambda name: usual.index(name.lower()))
            guessed.append(f"{role} is {named[role]}")
        elif role in ("user", "item"):
            raise DlrunError(
                f"{source.name}: which column is the {role}? It has {', '.join(source.columns[:12])}",
                f"name it: data.{role}=COLUMN",
            )
    for setting in ("user_features", "item_features"):
        for name in getattr(wanted, setting):
            require(source, setting, name)
    return named, [f"columns: {', '.join(guessed)} (guessed)"] if guessed else []


def _ratings(cells: Any) -> np.ndarray:
    """float64 [N], nan for what is no number."""
    return read_numbers(cells, frozenset()).values


def _times(source: Source, name: str) -> np.ndarray:
    """float64 [N], in whatever unit the column has; dates as seconds."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    cells: Any = source.table.column(name)
    if types.is_string(cells.type) or types.is_large_string(cells.type):
        numbers = read_numbers(cells, frozenset())
        if not numbers.bad:
            return numbers.values
        try:
            cells = pc.cast(cells, pa.timestamp("us"))
        except pa.ArrowInvalid as error:
            reason = str(error).partition("\n")[0]
            raise DlrunError(f"{source.name}: column '{name}' holds no times: {reason}", code=Exit.DATA) from error
    if types.is_date(cells.type):
        cells = pc.cast(cells, pa.timestamp("us"))
    if types.is_timestamp(cells.type):
        cells = pc.cast(pc.cast(cells, pa.timestamp("us", cells.type.tz)), pa.int64())
    return read_numbers(cells, frozenset()).values


def of_words(
    name: str, users: Sequence[str], items: Sequence[str], ratings: np.ndarray, times: np.ndarray,
    columns: Mapping[str, Any],
) -> Interactions:  # fmt: skip
    """Interactions that were made, not read."""
    import pyarrow as pa

    def read(words: Sequence[str]) -> Words:
        return read_words(pa.chunked_array([pa.array(words)]), frozenset())

    return Interactions(name, read(users), read(items), ratings, times, np.ones(len(users), dtype=bool), columns)
