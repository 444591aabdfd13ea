"""Class labels: what a column says, the names of the classes in order, and the index of each row's class."""

# N rows, K classes

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dlrun.data._bad import BadRows
from dlrun.data._source import Source
from dlrun.errors import DlrunError, Exit


class Labels:
    """The class indices of a source's rows; those without one are in no split (see `portions`)."""

    row_bytes = 8
    is_slow = False

    def __init__(self, labels_N: np.ndarray) -> None:
        self.labels_N = labels_N

    def read(self, rows: np.ndarray, bad: BadRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """ "label" int64 [len(rows)]; a label is never bad."""
        return {"label": self.labels_N[rows]}, np.ones(len(rows), dtype=bool)

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of the labels."""
        return hashlib.blake2b(self.labels_N[rows].tobytes(), digest_size=16).digest()


class Coded(NamedTuple):
    """A label column: its distinct names, and for each row the index of its name."""

    names: tuple[str, ...]
    codes_N: np.ndarray
    declared: bool  # the names are a ClassLabel's: complete, and in their order


def read_labels(source: Source, column: str, bad: BadRows) -> Coded:
    """The labels of a split; a row that has none is bad, and its code -1. Raises DlrunError naming the first such."""
    import pyarrow.compute as pc

    cells = source.table.column(column)
    if column in source.class_names:
        names, codes = source.class_names[column], pc.fill_null(cells, -1)
    else:
        values = cells.unique().drop_null()
        places = pc.call_function("index_in", [cells], pc.SetLookupOptions(values))
        names, codes = _names(source, column, values), pc.fill_null(places, -1)
    codes_N = codes.to_numpy().astype(np.int64)
    missing = np.flatnonzero(codes_N < 0)
    if missing.size and bad.on_bad == "raise":
        count = "1 row has" if len(missing) == 1 else f"{len(missing):,} rows have"
        raise DlrunError(
            f"{source.name}: {count} no label in column '{column}' (the first: row {missing[0]})",
            f"leave such rows out, up to data.max_bad={bad.max_bad}: data.on_bad=skip; or name another column:"
            " data.target=COLUMN",
            Exit.DATA,
        )
    for row in missing.tolist():
        bad.report(source.place(row), f"no label in column '{column}'")
    return Coded(names, codes_N, column in source.class_names)


def _names(source: Source, column: str, values) -> tuple[str, ...]:
    """Words for the distinct values of a column of words, whole numbers or truth values."""
    import pyarrow.types as types

    kind = values.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind) or types.is_boolean(kind):
        return tuple(str(value) for value in values.to_pylist())
    if types.is_floating(kind) and all(float(value).is_integer() for value in values.to_pylist()):
        return tuple(str(int(value)) for value in values.to_pylist())
    what = "numbers with fractions" if types.is_floating(kind) else f"values of type {kind}"
    raise DlrunError(
        f"{source.name}: column '{column}' holds {what}; a class label is a word or a whole number",
        "name another column: data.target=COLUMN"
        + (", or predict the number: data.target_kind=number" if types.is_floating(kind) else ""),
    )


def class_names(train: Coded, others: Sequence[Coded]) -> tuple[str, ...]:
    """The classes in order: as declared, else numbers by size, else words by alphabet."""
    if train.declared:
        return train.names
    names = set(train.names).union(*(other.names for other in others))
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def to_indices(source: Source, column: str, coded: Coded, classes: Sequence[str]) -> np.ndarray:
    """int64 [N]: each row's place in classes, -1 without a label. Raises DlrunError naming a label that is no class."""
    place = {name: index for index, name in enumerate(classes)}
    used = np.unique(coded.codes_N[coded.codes_N >= 0])
    if unknown := [code for code in used if coded.names[code] not in place]:
        row = int(np.flatnonzero(coded.codes_N == unknown[0])[0])
        shown = ", ".join(list(classes)[:8]) + (", …" if len(classes) > 8 else "")
        raise DlrunError(
            f"{source.place(row)}: '{coded.names[unknown[0]]}' in column '{column}' is none of the classes",
            f"the classes are {shown}",
            Exit.DATA,
        )
    table_K = np.array([*(place.get(name, -1) for name in coded.names), -1], dtype=np.int64)
    return table_K[coded.codes_N]


def given_by(classes: Sequence[str]) -> dict[str, dict[str, str]]:
    """The asset of a DataSpec that says how whole numbers, which were taken for classes, become numbers to predict."""
    is_whole = all(name.removeprefix("-").isdecimal() for name in classes)
    return {"given_by": {"targets": "data.target_kind=number"}} if is_whole else {}


def check_classes(labels_N: np.ndarray, classes: Sequence[str], name: str, column: str) -> list[str]:
    """Sentences about classes without training rows. Raises DlrunError if the rows are all of one class."""
    counts_K = np.bincount(labels_N, minlength=len(classes))
    if (counts_K > 0).sum() < 2:
        only = classes[int(counts_K.argmax())]
        raise DlrunError(
            f"{name}: every row has the label '{only}' in column '{column}'; at least two classes are needed",
            "name another column: data.target=COLUMN",
            Exit.DATA,
        )
    absent = [classes[index] for index in np.flatnonzero(counts_K == 0).tolist()]
    return [f"no training row has the label {', '.join(absent[:8])}"] if absent else []
