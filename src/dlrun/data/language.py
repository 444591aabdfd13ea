"""Plain text to go on with: files of text, or a column of text of a table or of a hub data set."""

from __future__ import annotations

from typing import Literal

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._bad import BadRows
from dlrun.data._plain_text import document_sources, is_plain
from dlrun.data._text_inputs import TextInputs
from dlrun.data._texts import read_texts, table_sources, text_column
from dlrun.data._vocabulary import Vocabulary
from dlrun.data._windows import Settings, assemble

_USUAL = ("text", "content", "document", "article", "sentence", "story")


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    text: str | None = None,
    splits: dict | None = None,
    tokenizer: Literal["word", "char", "bpe", "pretrained"] = "bpe",
    vocabulary_size: int = 8000,
    min_count: int = 1,
    lower: bool = False,
    pretrained: str | None = None,
    context: int = 128,
    stride: int | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    on_bad: Literal["raise", "skip"] = "raise",
    max_bad: int = 10,
) -> Dataset:
    """Documents as one stream of tokens, cut into windows.

    Settings:
        path: a file of plain text or a folder of such, each a document; else a table or a folder of tables on this
            machine, else ORG/NAME on the hub, each row a document.
        config: which of the hub data set's configurations; needed where it has several.
        revision: a commit, tag or branch of the hub data set; its newest unless set.
        text: the column of text of a table; guessed.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split, a file, a folder or a pattern.
        tokenizer: what text is cut into, words, characters or byte pairs of a vocabulary trained on the training
            text, or the tokens of a pretrained one.
        vocabulary_size: tokens at most, the most frequent ones, nine special ones among them.
        min_count: words, characters and byte pairs that are rarer in the training text are left out, at least 1.
        lower: capitals become small letters.
        pretrained: a folder with a tokenizer.json, or ORG/NAME of a model on the hub.
        context: tokens of a window, which is all that a model sees at once.
        stride: tokens from the start of a training window to that of the next; context unless set, so that an epoch
            sees each token once; 1 for windows that begin anywhere.
        valid_fraction: share of the training text, at its end, held out if no valid split is given, in [0, 1).
        test_fraction: the same for the test split, after that of valid.
        on_bad: raise at a row without text, or skip it.
        max_bad: rows that may be skipped before it is an error.
    """
    known = spec_of(tools)
    needs_train, bad = known is None, BadRows(on_bad, max_bad)
    if is_plain(path):
        sources, notes = document_sources(path, splits, needs_train)
        column = "text"
    else:
        sources, notes = table_sources(path, config, revision, splits, needs_train)
        first = sources.get("train") or next(iter(sources.values()))
        column, guesses = text_column(first, "text", text, _USUAL)
        notes = [*notes, *guesses]
    documents = {
        name: [said for said in read_texts(source, "text", column, bad) if said is not None]
        for name, source in sources.items()
    }
    settings = Settings(
        Vocabulary(tokenizer, vocabulary_size, min_count, lower, pretrained),
        context,
        stride,
        valid_fraction,
        test_fraction,
    )
    return assemble(documents, column, settings, tools, [*notes, *bad.notes()])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return TextInputs(spec)
