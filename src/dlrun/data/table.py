"""A table of numbers and categories: csv, parquet or json lines, its columns typed from their cells."""

from __future__ import annotations

from typing import Literal

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._bad import BadRows
from dlrun.data._columns import Wanted
from dlrun.data._mixed_inputs import MixedInputs
from dlrun.data._mixed_table import Settings, assemble
from dlrun.data._splits import HoldOut
from dlrun.errors import DlrunError


def build(
    tools: Tools,
    *,
    path: str = "",
    target: str | list | None = None,
    target_kind: Literal["auto", "class", "number"] = "auto",
    numeric: list | None = None,
    categorical: list | None = None,
    ignore: list | None = None,
    missing: list | None = None,
    scaling: Literal["standard", "quantile"] = "standard",
    min_count: int = 1,
    splits: dict | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    valid_size: int | None = None,
    test_size: int | None = None,
    train_size: int | None = None,
    split_seed: int | None = None,
    blocks: int | None = None,
    valid_blocks: list | None = None,
    test_blocks: list | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    max_bad: int = 10,
) -> Dataset:
    """Rows with a class, a number or several numbers to predict from columns of numbers and of categories.

    Settings:
        path: a file, or a folder of split files (train.csv, test.csv …); ~ and relative paths work.
        target: the column to predict, or a list of columns of numbers; guessed from a name such as label or target.
        target_kind: class or number; auto takes a single column for a number if it has fractions.
        numeric: columns to take for numbers, whatever they look like.
        categorical: columns to take for categories, whatever they look like.
        ignore: columns to leave out.
        missing: words that mean that a cell is empty, such as "?"; an empty cell always does.
        scaling: how numbers are scaled, to mean 0 and deviation 1, or through their quantiles to a normal distribution.
        min_count: categories rarer in the training rows count as unknown, at least 1.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split, a file, a folder or a pattern.
        valid_fraction: share of the training rows held out if no valid split is given, in [0, 1).
        test_fraction: the same for the test split.
        valid_size: rows held out for valid, instead of the fraction.
        test_size: rows held out for test, instead of the fraction.
        train_size: use this many of the training rows that remain, stratified by label.
        split_seed: chooses the rows held out; the run's seed unless set.
        blocks: cut the training rows, in their order, into this many equal blocks to hold out (for rows in time).
        valid_blocks: numbers of the blocks held out for valid, counted from 0.
        test_blocks: the same for test.
        on_bad: raise at a row that cannot be read, or skip it.
        max_bad: rows that may be skipped before it is an error.
    """
    from dlrun.data._tables import local_sources

    if min_count < 1:
        raise DlrunError(f"data.min_count: {min_count} is not at least 1", "data.min_count=1 keeps every category")
    known = spec_of(tools)
    sources, notes = local_sources(path, splits, needs_train=known is None)
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(
        seed, valid_fraction, test_fraction, valid_size, test_size, train_size, blocks, valid_blocks, test_blocks
    )
    settings = Settings(
        Wanted(target, target_kind),
        hold_out,
        BadRows(on_bad, max_bad),
        numeric,
        categorical,
        ignore,
        tuple(str(word) for word in missing or ()),
        scaling,
        min_count,
    )
    return assemble(sources, settings, known, notes)


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such a table."""
    return MixedInputs(spec)
