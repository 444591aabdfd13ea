"""Texts with a label, or with several: tables of this machine or of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._bad import BadRows
from dlrun.data._classified import Settings, assemble
from dlrun.data._source import Source
from dlrun.data._splits import HoldOut
from dlrun.data._text_inputs import TextInputs
from dlrun.data._text_labels import class_column, read_classes, read_label_lists
from dlrun.data._text_rows import TextRows, read_rows
from dlrun.data._texts import table_sources, text_column
from dlrun.data._vocabulary import Limit, Vocabulary
from dlrun.errors import DlrunError

_USUAL = ("text", "sentence", "content", "document", "review", "description")


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    text: str | list | None = None,
    target: str | None = None,
    labels: str | list | None = None,
    splits: dict | None = None,
    tokenizer: Literal["word", "char", "bpe", "pretrained"] = "word",
    vocabulary_size: int = 20000,
    min_count: int = 1,
    lower: bool = False,
    framed: bool = False,
    pretrained: str | None = None,
    max_length: int = 256,
    on_long: Literal["cut", "raise"] = "cut",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    valid_size: int | None = None,
    test_size: int | None = None,
    train_size: int | None = None,
    split_seed: int | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    max_bad: int = 10,
) -> Dataset:
    """Rows of a table with a text, or two, and what they are.

    Settings:
        path: a file or folder of tables on this machine, else ORG/NAME on the hub.
        config: which of the hub data set's configurations; needed where it has several.
        revision: a commit, tag or branch of the hub data set; its newest unless set.
        text: the column of text, or two such as [premise, hypothesis]; guessed.
        target: the label's column, one class a row; guessed from a declared class label or a name such as label.
        labels: of rows with several labels or none: a column of lists, or a list of columns of 0 and 1.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split, a file, a folder or a pattern.
        tokenizer: what texts are cut into, words, characters or byte pairs of a vocabulary trained on the training
            rows, or the tokens of a pretrained one.
        vocabulary_size: tokens at most, the most frequent ones, nine special ones among them.
        min_count: words, characters and byte pairs that are rarer in the training rows are left out, at least 1.
        lower: capitals become small letters.
        framed: texts begin with a beginning token and end with an end token; a pretrained vocabulary has its own way.
        pretrained: a folder with a tokenizer.json, or ORG/NAME of a model on the hub.
        max_length: tokens of a text, or of two together; a model with positions has so many.
        on_long: what becomes of longer texts, cut off their end or raise an error.
        valid_fraction: share of the training rows held out if no valid split is given, in [0, 1).
        test_fraction: the same for the test split.
        valid_size: rows held out for valid, instead of the fraction.
        test_size: rows held out for test, instead of the fraction.
        train_size: use this many of the training rows that remain, stratified by label.
        split_seed: chooses the rows held out; the run's seed unless set.
        on_bad: raise at a row without text, or skip it.
        max_bad: rows that may be skipped before it is an error.
    """
    known = spec_of(tools)
    sources, notes = table_sources(path, config, revision, splits, needs_train=known is None)
    hold_out = HoldOut(
        tools.seed if split_seed is None else split_seed,
        valid_fraction,
        test_fraction,
        valid_size,
        test_size,
        train_size,
    )
    limit = Limit(max_length if known is None else known.sizes["length"], on_long, "max_length")
    settings = Settings(
        Vocabulary(tokenizer, vocabulary_size, min_count, lower, pretrained, framed),
        limit,
        hold_out,
        BadRows(on_bad, max_bad),
    )
    columns, guesses = _text_columns(sources, text, known)
    if target and labels:
        raise DlrunError("data.target and data.labels are both set", "one label a row: target; several: labels")
    if not labels:
        target, guessed = class_column(sources.get("train") or next(iter(sources.values())), target)
        guesses = [*guesses, *guessed]
    if labels:
        read = read_label_lists(sources, labels, known)
    else:
        read = read_classes(sources, str(target), known, settings.bad)
    given = _rows(sources, columns, read.by_source, settings.bad)
    return assemble(given, read.names, columns, str(target), settings, tools, [*notes, *guesses])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return TextInputs(spec)


def _text_columns(
    sources: Mapping[str, Source], text: str | list | None, known: DataSpec | None
) -> tuple[tuple[str, ...], list[str]]:
    """The column of text, or the two, and a sentence if it was guessed."""
    if isinstance(text, list) and (len(text) != 2 or not all(isinstance(name, str) for name in text)):
        raise DlrunError(f"data.text: {text} is neither a column nor a list of two", "'data.text=[FIRST,SECOND]'")
    first = sources.get("train") or next(iter(sources.values()))
    if text is None and known is None:
        name, notes = text_column(first, "text", None, _USUAL)
        return (name,), notes
    names = (text if isinstance(text, list) else [text]) if text else known.assets["columns"]  # type: ignore[union-attr]
    if known is not None and len(names) != len(known.assets["columns"]):
        raise DlrunError(f"data.text: the run was trained on {len(known.assets['columns'])} texts a row")
    return tuple(names), []


def _rows(
    sources: Mapping[str, Source], columns: tuple[str, ...], labels: Mapping[str, np.ndarray], bad: BadRows
) -> dict[str, TextRows]:
    """The good rows of each source, with their labels."""
    wanted = {field: ("text", name) for field, name in zip(("first", "second"), columns, strict=False)}
    given = {name: read_rows(source, wanted, bad) for name, source in sources.items()}
    return {name: replace(rows, labels=labels[name][rows.rows_N]) for name, rows in given.items()}
