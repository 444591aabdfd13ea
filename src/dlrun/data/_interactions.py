"""Who had to do with what, and when: the interactions of a table, or of a plain file of numbers, as they were found."""

# N rows

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dlrun.data._bad import BadRows
from dlrun.data._columns import require
from dlrun.data._files import existing
from dlrun.data._mixed_cells import Numbers, Words, read_numbers, read_words
from dlrun.data._source import Source
from dlrun.data._texts import table_sources
from dlrun.errors import DlrunError, Exit

_PLAIN = (".txt", ".dat", ".data", ".inter", ".edges")
_SEPARATORS = ("::", "\t", ",", ";", "|", " ")
_USUAL = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "customer", "customer_id", "member"),
    "item": ("item", "item_id", "itemid", "iid", "movie", "movieid", "movie_id", "product", "product_id", "asin",
             "book", "book_id", "parent_asin"),
    "rating": ("rating", "ratings", "score", "stars", "overall"),
    "time": ("time", "timestamp", "ts", "date", "datetime", "unixreviewtime"),
}  # fmt: skip


@dataclass(frozen=True)
class Interactions:
    """One row each, in the order of the file.

    users, items: words and their places.   ratings, times: float64 [N], or None where there are none.
    is_good: bool [N], what could be read.   columns: further columns, for features.   name: what errors call it.
    keys: what the columns of users and of items are called.
    """

    name: str
    users: Words
    items: Words
    ratings: np.ndarray | None
    times: np.ndarray | None
    is_good: np.ndarray
    columns: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[str, str] = ("user", "item")

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


def interactions_source(
    path: str, config: str | None, revision: str | None, splits: Mapping[str, str] | None, bad: BadRows
) -> tuple[Source, list[str]]:
    """The rows of a plain file, of a table, or of a hub data set, and a sentence for what was guessed."""
    place = Path(path).expanduser()
    if Path(place.name.lower().removesuffix(".gz")).suffix in _PLAIN and not place.is_dir():
        return _plain(existing(path), bad), []
    sources, notes = table_sources(path, config, revision, splits, needs_train=False)
    if len(sources) != 1:
        raise DlrunError(
            f"data.path: {path} holds {' and '.join(sources)}; ratings are one table, and are split here",
            "data.path=FILE, or the one to take: data.splits.train=NAME",
        )
    return next(iter(sources.values())), notes


def read_interactions(
    source: Source, wanted: Wanted, ratings_are: Literal["unused", "compared", "predicted"], bad: BadRows
) -> tuple[Interactions, list[str]]:
    """The rows of a source, and sentences for what was guessed; one without user, item or time is a bad row.

    ratings_are: compared (with data.min_rating): a cell that is no number makes a bad row; predicted: an empty one too.
    """
    named, notes = _columns(source, wanted)
    if ratings_are != "unused" and "rating" not in named:
        raise DlrunError(f"data.rating: {source.name} has no column of ratings", "data.rating=COLUMN")
    column = source.table.column
    users, items = (read_words(column(named[role]), frozenset()) for role in ("user", "item"))
    ratings = read_numbers(column(named["rating"]), frozenset()) if "rating" in named else None
    times = _times(column(named["time"])) if "time" in named else None
    wrong = {} if times is None else _missing(times, named["time"], "time") | _unread(times, named["time"], "time")
    if ratings is not None and ratings_are != "unused":
        wrong |= _missing(ratings, named["rating"], "number") if ratings_are == "predicted" else {}
        wrong |= _unread(ratings, named["rating"], "number")
    for role, words in (("item", items), ("user", users)):
        wrong |= dict.fromkeys(np.flatnonzero(words.codes < 0).tolist(), f"no {role}")
    for row in sorted(wrong):
        bad.report(source.place(row), wrong[row])
    is_good = np.ones(len(source), dtype=bool)
    is_good[list(wrong)] = False
    further = {name: column(name) for name in (*wanted.user_features, *wanted.item_features)}
    return Interactions(
        source.name, users, items, None if ratings is None else ratings.values, None if times is None else times.values,
        is_good, further, (named["user"], named["item"]),
    ), notes  # fmt: skip


def _missing(found: Numbers, column: str, what: str) -> dict[int, str]:
    """The rows where nothing is, and a sentence for each."""
    return dict.fromkeys(np.flatnonzero(np.isnan(found.values)).tolist(), f"no {what} in column '{column}'")


def _unread(found: Numbers, column: str, what: str) -> dict[int, str]:
    """The rows where something else is, and a sentence for each."""
    return {row: f"'{said}' in column '{column}' is no {what}" for row, said in found.bad.items()}


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


def _times(cells: Any) -> Numbers:
    """In whatever unit the column has; dates as microseconds."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    if types.is_string(cells.type) or types.is_large_string(cells.type):
        numbers = read_numbers(cells, frozenset())
        return min(numbers, _dates(cells), key=lambda found: len(found.bad)) if numbers.bad else numbers
    if types.is_date(cells.type):
        cells = pc.cast(cells, pa.timestamp("us"))
    if types.is_timestamp(cells.type):
        cells = pc.cast(pc.cast(cells, pa.timestamp("us", cells.type.tz)), pa.int64())
    return read_numbers(cells, frozenset())


def _dates(cells: Any) -> Numbers:
    """Dates that are written out, in microseconds: the column at once, or word by word where one of them is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return read_numbers(pc.cast(pc.cast(cells, pa.timestamp("us")), pa.int64()), frozenset())
    except pa.ArrowInvalid:
        known = {word: _date(word) for word in cells.unique().drop_null().to_pylist()}
    words = cells.to_pylist()
    bad = {row: word for row, word in enumerate(words) if word is not None and known[word] is None}
    values = [np.nan if word is None or row in bad else known[word] for row, word in enumerate(words)]
    return Numbers(np.array(values, dtype=np.float64), bad)


def _date(word: str) -> int | None:
    import pyarrow as pa

    try:
        return pa.scalar(word).cast(pa.timestamp("us")).cast(pa.int64()).as_py()
    except pa.ArrowInvalid:
        return None


def of_words(
    name: str, users: Sequence[str], items: Sequence[str], ratings: np.ndarray, times: np.ndarray,
    columns: Mapping[str, Any],
) -> Interactions:  # fmt: skip
    """Interactions that were made, not read."""
    import pyarrow as pa

    def read(words: Sequence[str]) -> Words:
        return read_words(pa.chunked_array([pa.array(words)]), frozenset())

    return Interactions(name, read(users), read(items), ratings, times, np.ones(len(users), dtype=bool), columns)
