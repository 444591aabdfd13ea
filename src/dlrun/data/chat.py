"""Conversations to answer: instructions with their answers, or lists of messages of several turns."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._bad import BadRows
from dlrun.data._conversation import Turn, question, turns_of
from dlrun.data._dialogues import Dialogues, Settings, assemble
from dlrun.data._source import Source
from dlrun.data._splits import HoldOut
from dlrun.data._text_inputs import TextInputs
from dlrun.data._texts import list_cells, optional_texts, read_texts, table_sources
from dlrun.data._vocabulary import Limit, Vocabulary
from dlrun.errors import DlrunError, Exit

_MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue")


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    messages: str | None = None,
    instruction: str = "instruction",
    input: str = "input",
    output: str = "output",
    system: str = "",
    template: str | None = None,
    splits: dict | None = None,
    tokenizer: Literal["word", "char", "bpe", "pretrained"] = "bpe",
    vocabulary_size: int = 8000,
    min_count: int = 1,
    lower: bool = False,
    pretrained: str | None = None,
    context: int = 512,
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
    """Rows of who says what; only what the assistant says is learned.

    Settings:
        path: a file or folder of tables on this machine, else ORG/NAME on the hub.
        config: which of the hub data set's configurations; needed where it has several.
        revision: a commit, tag or branch of the hub data set; its newest unless set.
        messages: the column of lists of {role, content} or {from, value}; guessed from a name such as messages, and
            where there is none, rows are instructions.
        instruction: the column of what is asked.
        input: the column of what it is asked about; it may be missing, and its cells empty.
        output: the column of what is answered.
        system: what stands before every conversation that does not say it itself.
        template: how a conversation is laid out, a file with a Jinja chat template, or plain for dlrun's own; null is
            the template of the pretrained vocabulary, if it has one.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split, a file, a folder or a pattern.
        tokenizer: what texts are cut into, words, characters or byte pairs of a vocabulary trained on the training
            rows, or the tokens of a pretrained one; a run to start from brings its own.
        vocabulary_size: tokens at most, the most frequent ones, nine special ones among them.
        min_count: words, characters and byte pairs that are rarer in the training rows are left out, at least 1.
        lower: capitals become small letters.
        pretrained: a folder with a tokenizer.json, or ORG/NAME of a model on the hub.
        context: tokens of a conversation, which is all that a model sees at once.
        on_long: what becomes of longer conversations, cut (the oldest turns, then the end of the last answer) or raise
            an error.
        valid_fraction: share of the training rows held out if no valid split is given, in [0, 1).
        test_fraction: the same for the test split.
        valid_size: rows held out for valid, instead of the fraction.
        test_size: rows held out for test, instead of the fraction.
        train_size: use this many of the training rows that remain.
        split_seed: chooses the rows held out; the run's seed unless set.
        on_bad: raise at a row that is no conversation with an answer, or skip it.
        max_bad: rows that may be skipped before it is an error.
    """
    known, bad = spec_of(tools), BadRows(on_bad, max_bad)
    sources, notes = table_sources(path, config, revision, splits, needs_train=known is None)
    first = sources.get("train") or next(iter(sources.values()))
    system = system if known is None else known.assets["system"]
    column = messages or next((name for name in _MESSAGES if name in first.columns), None)
    if column is not None:
        given = {name: _of_messages(source, column, system, bad) for name, source in sources.items()}
    else:
        columns = (instruction, input, output)
        given = {name: _of_instructions(source, columns, system, bad) for name, source in sources.items()}
    hold_out = HoldOut(
        tools.seed if split_seed is None else split_seed,
        valid_fraction,
        test_fraction,
        valid_size,
        test_size,
        train_size,
    )
    settings = Settings(
        Vocabulary(tokenizer, vocabulary_size, min_count, lower, pretrained),
        Limit(context if known is None else known.sizes["context"], on_long, "context"),
        system,
        template,
        hold_out,
        bad,
    )
    return assemble(given, settings, tools, notes)


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return TextInputs(spec)


def _of_messages(source: Source, column: str, system: str, bad: BadRows) -> Dialogues:
    """A column of lists of messages."""
    found: dict[int, list[Turn]] = {}
    answers = [name for name in ("chosen", "rejected") if name in source.columns and name != column]
    for row, messages in enumerate(list_cells(source, "messages", column)):
        try:
            turns = turns_of(messages)
            if not any(turn.role == "assistant" for turn in turns):
                answer = f" in '{column}'; data.messages={answers[0]} is a column of answers" if answers else ""
                raise ValueError(f"the assistant says nothing{answer}")
        except ValueError as error:
            bad.report(source.place(row), str(error))
        else:
            found[row] = _begun(turns, system)
    return _dialogues(source, found)


def _of_instructions(source: Source, columns: tuple[str, str, str], system: str, bad: BadRows) -> Dialogues:
    """Three columns: what is asked, about what, and the answer."""
    asked = read_texts(source, "instruction", columns[0], bad)
    about = optional_texts(source, columns[1])
    said = read_texts(source, "output", columns[2], bad)
    found = {
        row: _begun([question(wanted, given), Turn("assistant", answer.strip())], system)
        for row, (wanted, given, answer) in enumerate(zip(asked, about, said, strict=True))
        if wanted is not None and answer is not None
    }
    return _dialogues(source, found)


def _begun(turns: list[Turn], system: str) -> list[Turn]:
    return [Turn("system", system), *turns] if system and turns[0].role != "system" else turns


def _dialogues(source: Source, found: dict[int, list[Turn]]) -> Dialogues:
    if not found:
        raise DlrunError(f"{source.name}: there is no conversation that can be read", code=Exit.DATA)
    return Dialogues.of(source.name, np.array(list(found)), list(found.values()))
