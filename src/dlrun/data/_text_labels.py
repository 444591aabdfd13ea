"""What rows of text are labelled with: one class each, or any number of labels."""

# N rows, C labels

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dlrun.contracts import DataSpec
from dlrun.data._bad import BadRows
from dlrun.data._labels import class_names, read_labels, to_indices
from dlrun.data._source import Source
from dlrun.data._texts import list_cells
from dlrun.errors import DlrunError, Exit, did_you_mean

_USUAL = ("label", "labels", "target", "class", "category", "sentiment", "topic", "y")


class Read(NamedTuple):
    """The labels' names in order, and each source's rows: int64 [N] classes, or float32 [N, C] zeros and ones."""

    names: tuple[str, ...]
    by_source: dict[str, np.ndarray]


def class_column(source: Source, target: str | None) -> tuple[str, list[str]]:
    """The column of classes, and a sentence if it was guessed. Raises DlrunError where none is obvious."""
    if target is not None:
        _require(source, "target", target)
        return target, []
    usual = [name for word in _USUAL for name in source.columns if name.lower() == word]
    declared = [name for name in source.columns if name in source.class_names]
    found = next((names[0] for names in ([name for name in usual if name in declared], declared, usual) if names), None)
    if found is None:
        raise DlrunError(
            f"{source.name}: which column is the label? It has {', '.join(source.columns[:12])}",
            "name it: data.target=COLUMN, or data.labels=COLUMN where rows have several",
        )
    return found, [f"label column: {found} (guessed)"]


def read_classes(sources: Mapping[str, Source], column: str, known: DataSpec | None, bad: BadRows) -> Read:
    """One class a row; -1 of a row that has none, which is bad."""
    for source in sources.values():
        _require(source, "target", column)
    coded = {name: read_labels(source, column, bad) for name, source in sources.items()}
    if known is not None:
        classes = known.labels
    else:
        classes = class_names(coded["train"], [other for name, other in coded.items() if name != "train"])
    return Read(classes, {name: to_indices(sources[name], column, coded[name], classes) for name in sources})


def read_label_lists(sources: Mapping[str, Source], labels: str | list, known: DataSpec | None) -> Read:
    """Any number of labels a row.

    labels: a column of lists, or a list of columns of zeros and ones.
    """
    if isinstance(labels, list):
        names = tuple(str(name) for name in labels)
        if len(names) < 2 or len(set(names)) < len(names):
            raise DlrunError(f"data.labels: {labels} is not a list of different columns", "data.labels=COLUMN")
        if known is not None and names != known.labels:
            raise DlrunError(f"data.labels: the run was trained with {', '.join(known.labels)}")
        return Read(names, {name: _flags(source, names) for name, source in sources.items()})
    cells = {name: list_cells(source, "labels", labels) for name, source in sources.items()}
    declared = next(iter(sources.values())).class_names.get(labels)
    names = known.labels if known is not None else declared or _distinct(cells)
    found = {name: _marked(sources[name], rows, names, bool(declared), labels) for name, rows in cells.items()}
    return Read(names, found)


def _require(source: Source, setting: str, name: str) -> None:
    if name not in source.columns:
        raise DlrunError(
            f"data.{setting}: {source.name} has no column '{name}'", did_you_mean(str(name), source.columns)
        )


def _flags(source: Source, names: tuple[str, ...]) -> np.ndarray:
    """Columns of zeros and ones, side by side."""
    import pyarrow.compute as pc

    flags = np.empty((len(source), len(names)), dtype=np.float32)
    for index, name in enumerate(names):
        _require(source, "labels", name)
        try:
            flags[:, index] = pc.fill_null(source.table.column(name).cast("float32"), float("nan")).to_numpy()
        except ValueError as error:  # pyarrow's errors are
            raise DlrunError(f"data.labels: {source.name}: column '{name}' holds no zeros and ones") from error
    wrong = np.argwhere(~np.isin(flags, (0, 1)))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise DlrunError(f"{source.place(row)}: '{names[column]}' is neither 0 nor 1", code=Exit.DATA)
    return flags


def _distinct(cells: Mapping[str, list]) -> tuple[str, ...]:
    found = {str(label) for rows in cells.values() for row in rows for label in row or ()}
    return tuple(sorted(found, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def _marked(source: Source, rows: list, names: tuple[str, ...], is_index: bool, column: str) -> np.ndarray:
    """Lists of labels as zeros and ones; is_index: they are places among the names."""
    places = {str(index) if is_index else name: index for index, name in enumerate(names)}
    marks = np.zeros((len(rows), len(names)), dtype=np.float32)
    for row, labels in enumerate(rows):
        if labels is None:
            raise DlrunError(f"{source.place(row)}: there is no list in column '{column}'", code=Exit.DATA)
        for label in labels:
            if str(label) not in places:
                shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
                message = f"{source.place(row)}: '{label}' in column '{column}' is none of the labels"
                raise DlrunError(message, did_you_mean(str(label), names, f"they are {shown}"), Exit.DATA)
            marks[row, places[str(label)]] = 1
    return marks
