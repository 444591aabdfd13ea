"""Texts and what they are to become (translations, summaries): tables, hub data sets, or two files line for line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._bad import BadRows
from dlrun.data._pairs import Settings, assemble
from dlrun.data._plain_text import are_lines, line_sources
from dlrun.data._source import Source
from dlrun.data._splits import HoldOut
from dlrun.data._text_inputs import TextInputs
from dlrun.data._text_rows import TextRows, good_rows
from dlrun.data._texts import list_cells, read_texts, table_sources, text_column
from dlrun.data._vocabulary import Limit, Vocabulary
from dlrun.errors import DlrunError
from dlrun.tokens import BETWEEN_REFERENCES

_SOURCES = ("source", "src", "document", "article", "dialogue", "text", "question")
_TARGETS = ("target", "tgt", "summary", "highlights", "abstract", "translation", "answer")


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    source: str | None = None,
    target: str | None = None,
    references: str | None = None,
    splits: dict | None = None,
    tokenizer: Literal["word", "char", "bpe", "pretrained"] = "bpe",
    vocabulary_size: int = 8000,
    min_count: int = 1,
    lower: bool = False,
    shared_vocabulary: bool = True,
    pretrained: str | None = None,
    prefix: str = "",
    max_length: int = 128,
    max_target_length: int = 128,
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
    """Rows of a text to read and a text to write.

    Settings:
        path: a file or folder of tables on this machine; a folder of plain text files in two languages, line for line
            (train.de and train.en); else ORG/NAME on the hub.
        config: which of the hub data set's configurations; needed where it has several.
        revision: a commit, tag or branch of the hub data set; its newest unless set.
        source: the column to read (of plain text, the files' last suffix); guessed from a name such as document.
        target: the column to write; guessed from a name such as summary.
        references: a column of lists of texts, any of which is right, to score against; the target unless set.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split, a file, a folder or a pattern.
        tokenizer: what texts are cut into, words, characters or byte pairs of a vocabulary trained on the training
            rows, or the tokens of a pretrained one.
        vocabulary_size: tokens at most, the most frequent ones, nine special ones among them.
        min_count: words, characters and byte pairs that are rarer in the training rows are left out, at least 1.
        lower: capitals become small letters.
        shared_vocabulary: one vocabulary for both texts, else one each.
        pretrained: a folder with a tokenizer.json, or ORG/NAME of a model on the hub.
        prefix: words put before every source, such as "summarize: ".
        max_length: tokens of a source.
        max_target_length: tokens of a target, the beginning token among them.
        on_long: what becomes of longer texts, cut off their end or raise an error.
        valid_fraction: share of the training rows held out if no valid split is given, in [0, 1).
        test_fraction: the same for the test split.
        valid_size: rows held out for valid, instead of the fraction.
        test_size: rows held out for test, instead of the fraction.
        train_size: use this many of the training rows that remain.
        split_seed: chooses the rows held out; the run's seed unless set.
        on_bad: raise at a row without text, or skip it.
        max_bad: rows that may be skipped before it is an error.
    """
    known, bad = spec_of(tools), BadRows(on_bad, max_bad)
    if known is not None:
        source, target = source or known.assets["columns"][0], target or known.assets["target_column"]
    if are_lines(path):
        if not source or not target:
            raise DlrunError(
                "data.source and data.target are not set", "the files' suffixes: data.source=de data.target=en"
            )
        sources, notes = line_sources(path, source, target, splits, needs_train=known is None)
    else:
        sources, notes = table_sources(path, config, revision, splits, needs_train=known is None)
    first = sources.get("train") or next(iter(sources.values()))
    source, guessed_source = text_column(first, "source", source, _SOURCES)
    target, guessed_target = text_column(first, "target", target, _TARGETS)
    if source == target:
        raise DlrunError(f"data.source and data.target are the same column, '{source}'", "data.target=COLUMN")
    given = {name: _rows(each, source, target, references, bad) for name, each in sources.items()}
    hold_out = HoldOut(
        tools.seed if split_seed is None else split_seed,
        valid_fraction,
        test_fraction,
        valid_size,
        test_size,
        train_size,
    )
    sizes: Mapping[str, int] = {} if known is None else known.sizes
    settings = Settings(
        Vocabulary(tokenizer, vocabulary_size, min_count, lower, pretrained),
        shared_vocabulary,
        prefix,
        Limit(sizes.get("length", max_length), on_long, "max_length"),
        Limit(sizes.get("target_length", max_target_length), on_long, "max_target_length"),
        hold_out,
        bad,
    )
    return assemble(given, (source, target), settings, tools, [*notes, *guessed_source, *guessed_target])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return TextInputs(spec)


def _rows(source: Source, asked: str, said: str, references: str | None, bad: BadRows) -> TextRows:
    """The rows that have both texts, and a reference."""
    cells = {"source": read_texts(source, "source", asked, bad), "target": read_texts(source, "target", said, bad)}
    if references is None:
        return good_rows(source, cells | {"reference": cells["target"]})
    joined: list[str | None] = []
    for row, texts in enumerate(list_cells(source, "references", references)):
        texts = [text for text in texts or () if isinstance(text, str) and text.strip()]
        if not texts:
            bad.report(source.place(row), f"there is no text in column '{references}'")
        joined.append(BETWEEN_REFERENCES.join(texts) or None)
    return good_rows(source, cells | {"reference": joined})
