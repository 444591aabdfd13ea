"""Rows of a table in time: windows to forecast from, or to classify, split by time."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._bad import BadRows
from dlrun.data._mixed_cells import MOSTLY, is_text, read_numbers, share_of_numbers
from dlrun.data._series import SeriesInputs, Table, Windows, assemble
from dlrun.data._source import Source
from dlrun.data._text_labels import class_column, read_classes
from dlrun.data._texts import table_sources
from dlrun.errors import DlrunError, did_you_mean

_ROW_NUMBERS = ("id", "idx", "index", "row", "unnamed: 0")


def build(
    tools: Tools,
    *,
    path: str = "",
    columns: list | None = None,
    target_columns: list | None = None,
    target: str | None = None,
    window: int = 48,
    horizon: int = 1,
    stride: int = 1,
    season: int = 1,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    on_bad: Literal["raise", "skip"] = "raise",
    max_bad: int = 10,
) -> Dataset:
    """One table (csv, parquet, json lines) whose rows are equally far apart in time, the earliest first.

    Columns are standardised by the training rows. A window of valid or test may look back into the rows before these.

    Settings:
        path: the table.
        columns: columns of numbers that a window holds; all there are unless set.
        target_columns: which of them are foretold; all unless set.
        target: instead of forecasts a column of classes; a window is of the class of its last row.
        window: rows looked back on.
        horizon: rows ahead that are foretold, the first of them right after the window.
        stride: rows from the beginning of a window to that of the next.
        season: rows after which the series repeats itself, for the naive forecast and MASE; 1 for none.
        valid_fraction: share of the rows, before those of test, to choose by, in [0, 1).
        test_fraction: share of the rows, at the end, to score on, in [0, 1).
        on_bad: raise at a row without a finite number in each column, or skip the windows it is in.
        max_bad: rows that may be so before it is an error.
    """
    windows = Windows(window, horizon, stride, season, valid_fraction, test_fraction)
    known = spec_of(tools)
    sources, notes = table_sources(path, None, None, None, needs_train=False)
    if len(sources) > 1:
        raise DlrunError(
            f"data.path={path}: {' and '.join(sources)} are several tables; a series is one, split by time",
            "name the file: data.path=FOLDER/FILE.csv",
        )
    source = next(iter(sources.values()))
    bad = BadRows(on_bad, max_bad)
    if known is not None:
        columns, target = list(known.assets["columns"]), target or known.assets.get("target_column")
        target_columns = [columns[place] for place in known.assets["targets"]]
        held, repeats = known.sizes["window"], known.assets.get("season", 1)
        windows = Windows(held, known.sizes.get("horizon", 1), stride, repeats, valid_fraction, test_fraction)
    table, guesses = _table(source, columns, target_columns, target, known, bad)
    dataset = assemble(table, windows, tools, [*notes, *guesses, *bad.notes()])
    if known is None and target is not None:
        dataset.spec.assets["target_column"] = target
    return dataset


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return SeriesInputs(spec)


def _table(
    source: Source,
    columns: list | None,
    target_columns: list | None,
    target: str | None,
    known: DataSpec | None,
    bad: BadRows,
) -> tuple[Table, list[str]]:
    """The table, and sentences for what was guessed."""
    labels = None
    if target is not None:
        if target_columns and known is None:
            raise DlrunError(
                "data.target and data.target_columns are both set", "a class: target; forecasts: the other"
            )
        class_column(source, target)
        labels = read_classes({"train": source}, target, known, bad)
    names, notes = _columns(source, columns, target_columns, target)
    values_NC, is_bad_N = _values(source, names, bad)
    targets = tuple(names.index(name) for name in (target_columns or names)) if target is None else ()
    values_NC = np.where(is_bad_N[:, None], 0.0, values_NC)
    if labels is None:
        return Table(source.name, tuple(names), values_NC, targets, is_bad_N), notes
    classes_N = labels.by_source["train"]
    is_bad_N |= classes_N < 0
    return Table(source.name, tuple(names), values_NC, (), is_bad_N, classes_N, labels.names), notes


def _values(source: Source, names: list[str], bad: BadRows) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N, C], and which rows [N] have no finite number in each column, which are bad."""
    read = {name: read_numbers(source.table.column(name), frozenset()) for name in names}
    values_NC = np.stack([found.values for found in read.values()], axis=1)
    is_bad_N = np.logical_not(np.isfinite(values_NC).all(axis=1))
    for row in np.flatnonzero(is_bad_N).tolist():
        column = names[int(np.argmin(np.isfinite(values_NC[row])))]
        said = read[column].bad.get(row)
        reason = f"there is no finite number in column '{column}'"
        bad.report(source.place(row), reason if said is None else f"'{said}' in column '{column}' is no number")
    return values_NC, is_bad_N


def _columns(
    source: Source, columns: list | None, target_columns: list | None, target: str | None
) -> tuple[list[str], list[str]]:
    """The columns of a window, which are those named and those foretold, and sentences for what was guessed.

    Raises: DlrunError for a column that is not there, or holds no number.
    """
    notes = []
    if columns is None:
        others = [name for name in source.columns if name != target]
        names = [name for name in others if _share(source, name) >= MOSTLY and name.lower() not in _ROW_NUMBERS]
        left = [name for name in others if name not in names]
        notes = [f"columns: {', '.join(names)} (guessed; data.columns)"] if names else []
        notes += [f"not in a window: {', '.join(left)} (guessed; data.columns)"] if left else []
    else:
        names = [str(name) for name in columns]
    for setting, chosen in (("columns", names), ("target_columns", [str(name) for name in target_columns or ()])):
        for name in chosen:
            if name not in source.columns:
                hint = did_you_mean(name, source.columns)
                raise DlrunError(f"data.{setting}: {source.name} has no column '{name}'", hint)
            if not _share(source, name):
                kind = source.table.column(name).type
                raise DlrunError(f"data.{setting}: {source.name}: column '{name}' holds {kind}; numbers are needed")
    names += [str(name) for name in target_columns or () if name not in names]
    if not names or len(set(names)) < len(names):
        raise DlrunError(
            f"data.columns: {source.name}: {names} are no different columns of numbers", "'data.columns=[…]'"
        )
    return names, notes


def _share(source: Source, name: str) -> float:
    """Of a column's cells, the share that are numbers."""
    import pyarrow.types as types

    cells = source.table.column(name)
    kind = cells.type
    if is_text(kind):
        return share_of_numbers(cells, frozenset())
    return float(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))
