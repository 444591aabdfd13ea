"""Cells of a table of mixed columns, read as numbers or as words: from Arrow columns, or from the rows of a person."""

# N rows, U distinct values

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

MOSTLY = 0.9  # of a column's words: from here on they are numbers, and the others are mistakes
_LARGEST = float(np.finfo(np.float32).max)
_SPELLED = {"True": "true", "False": "false", "TRUE": "true", "FALSE": "false"}


class Numbers(NamedTuple):
    """values: float64 [N], nan where a cell is missing or bad.   bad: the places of bad cells, and what they say."""

    values: np.ndarray
    bad: dict[int, str]


class Words(NamedTuple):
    """names: the distinct words.   codes: int64 [N], the place of each cell's word in names, -1 where it is missing."""

    names: tuple[str, ...]
    codes: np.ndarray


def as_number(cell: object, missing: frozenset[str]) -> float:
    """A cell as a number, nan where it is missing. Raises ValueError for what is no finite number."""
    if isinstance(cell, str):
        cell = cell.strip()
        if not cell or cell in missing:
            return math.nan
    if cell is None:
        return math.nan
    number = float(cell)  # type: ignore[arg-type]
    if math.isnan(number):
        if isinstance(cell, str):  # "nan" is a word, unless the user says that it means missing
            raise ValueError("no number")
        return math.nan
    if abs(number) > _LARGEST:
        raise ValueError("not finite")
    return number


def as_word(cell: object, missing: frozenset[str]) -> str | None:
    """A cell as a word, None where it is missing: 1.0 is "1", so that a gap in a column changes no word."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool | np.bool_):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        cell = int(cell)
    word = str(cell).strip()
    word = _SPELLED.get(word, word)
    return None if not word or word in missing else word


def read_numbers(cells: Any, missing: frozenset[str]) -> Numbers:
    """The numbers of an Arrow column; one of words is read word by word."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    if not is_text(cells.type):
        cells = pc.cast(cells, pa.uint8()) if types.is_boolean(cells.type) else cells
        values = pc.cast(cells, pa.float64(), safe=False).to_numpy().copy()
        places = np.flatnonzero(np.isinf(values) | (np.abs(values) > _LARGEST))
        bad = {int(place): f"{values[place]:g}" for place in places}
    else:
        names, codes_N = _distinct(cells)
        read = [_attempt(name, missing) for name in names]
        table = np.array([number if number is not None else np.nan for number in read] + [np.nan])
        values = table[codes_N]
        wrong = np.array([number is None for number in read] + [False])
        bad = {int(place): names[codes_N[place]] for place in np.flatnonzero(wrong[codes_N])}
    values[list(bad)] = np.nan
    return Numbers(values, bad)


def read_words(cells: Any, missing: frozenset[str]) -> Words:
    """The words of an Arrow column of words, numbers or truth values."""
    values, codes_N = _distinct(cells)
    words = [as_word(value, missing) for value in values]
    names = tuple(dict.fromkeys(word for word in words if word is not None))
    place = {name: index for index, name in enumerate(names)}
    table = np.array([-1 if word is None else place[word] for word in words] + [-1], dtype=np.int64)
    return Words(names, table[codes_N])


def listed_numbers(given: Sequence[object], missing: frozenset[str]) -> Numbers:
    """As `read_numbers`, of plain values."""
    return _one_by_one(given, lambda cell: as_number(cell, missing))


def listed_words(given: Sequence[object], missing: frozenset[str]) -> Words:
    """As `read_words`, of plain values."""
    words = [as_word(cell, missing) for cell in given]
    names = tuple(dict.fromkeys(word for word in words if word is not None))
    place = {name: index for index, name in enumerate(names)}
    return Words(names, np.array([-1 if word is None else place[word] for word in words], dtype=np.int64))


def share_of_numbers(cells: Any, missing: frozenset[str]) -> float:
    """Of the cells that are not missing, the share that are numbers; 0 where there are none."""
    found = read_numbers(cells, missing)
    numbers = int((~np.isnan(found.values)).sum())
    return numbers / (numbers + len(found.bad)) if numbers else 0.0


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is that of words."""
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind)


def _distinct(cells: Any) -> tuple[list[Any], np.ndarray]:
    """The U distinct values, and for each of N cells the place of its own; -1 where there is none."""
    import pyarrow.compute as pc

    values = cells.unique().drop_null()
    places = pc.call_function("index_in", [cells], pc.SetLookupOptions(values))
    return values.to_pylist(), pc.fill_null(places, -1).to_numpy().astype(np.int64)


def _attempt(cell: object, missing: frozenset[str]) -> float | None:
    try:
        return as_number(cell, missing)
    except (ValueError, TypeError, OverflowError):
        return None


def _one_by_one(given: Sequence[object], read: Callable[[object], float]) -> Numbers:
    values, bad = np.full(len(given), np.nan), {}
    for place, cell in enumerate(given):
        try:
            values[place] = read(cell)
        except (ValueError, TypeError, OverflowError):
            bad[place] = str(cell)
    return Numbers(values, bad)
