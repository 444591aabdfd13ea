"""Conversations to tokens, of which only the assistant's are to be said; splits, and what a model must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dlrun.contracts import NO_TARGET, Dataset, DataSpec, Tools
from dlrun.data._assemble import Portion, portions, spec_of
from dlrun.data._bad import BadRows
from dlrun.data._conversation import Laid, Turn, joined, lay_out
from dlrun.data._ragged import Ragged, RaggedSplit
from dlrun.data._splits import HoldOut
from dlrun.data._text_inputs import TextInputs
from dlrun.data._text_rows import TextRows, fingerprint, take
from dlrun.data._vocabulary import Found, Limit, Vocabulary
from dlrun.tokens import FILE, Tokenizer

_BETWEEN = "\x1e"  # of turns, in what is hashed


@dataclass(frozen=True)
class Settings:
    """What a user may set of conversations; see `chat.build`."""

    vocabulary: Vocabulary
    limit: Limit
    system: str
    hold_out: HoldOut
    bad: BadRows


@dataclass(frozen=True)
class Dialogues:
    """The good rows of one given split, as conversations that have an answer."""

    rows: TextRows
    turns: list[list[Turn]]

    @staticmethod
    def of(name: str, rows_N: np.ndarray, turns: list[list[Turn]]) -> Dialogues:
        """name: what errors call the source.   rows_N: the rows' numbers there."""
        texts = [_BETWEEN.join(f"{turn.role}:{turn.text}" for turn in each) for each in turns]
        return Dialogues(TextRows(name, rows_N.astype(np.int64), {"conversation": texts}), turns)


def assemble(given: Mapping[str, Dialogues], settings: Settings, tools: Tools, notes: list[str]) -> Dataset:
    """The Dataset of conversations. notes: what was said so far."""
    known, rows = spec_of(tools), {name: each.rows for name, each in given.items()}
    parts, made = portions({name: len(each) for name, each in rows.items()}, None, settings.hold_out)
    found = settings.vocabulary.find(
        lambda: (turn.text for row in parts["train"].rows for turn in given["train"].turns[row]), tools
    )
    tokenizer = found.tokenizer
    laid, cut = _laid_out(given, rows, found, settings.limit)
    parts = {name: part._replace(rows=_answered(part, laid, rows, settings)) for name, part in parts.items()}
    whole = {name: _split(rows[name].rows_N, each) for name, each in laid.items()}
    context = settings.limit.most
    spec = known or DataSpec(
        ("tokens",),
        "targets",
        {"vocabulary": tokenizer.size, "context": context},
        {"tokens": (context,)},
        (),
        {
            "kind": "text",
            "form": "chat",
            "columns": ["prompt"],
            "instead": ["messages", "conversations", "instruction"],
            "system": settings.system,
        },
        {FILE: tokenizer.to_json()},
    )
    said = (*notes, *made, *found.notes, *cut, *settings.bad.notes())
    return Dataset(spec, take(whole, parts), TextInputs(spec), said, fingerprint(rows, parts))


def _laid_out(
    given: Mapping[str, Dialogues], rows: Mapping[str, TextRows], vocabulary: Found, limit: Limit
) -> tuple[dict[str, list[Laid]], list[str]]:
    """The tokens of every conversation, and a sentence if some were cut, or are unknown."""
    tokenizer = vocabulary.tokenizer
    laid = {name: _each_turn(each.turns, tokenizer) for name, each in given.items()}
    lengths = {
        name: np.array([sum(len(turn.ids_T) for turn in turns) for turns in each], dtype=np.int64)
        for name, each in laid.items()
    }
    notes = limit.check(rows, lengths, "conversation")
    notes += vocabulary.unknown({
        name: [turn.ids_T for turns in each for turn in turns] for name, each in laid.items()
    })  # fmt: skip
    most = limit.most + 1  # the last token is said, not read
    return {
        name: [
            joined(turns, parts, tokenizer.beginning, most) for turns, parts in zip(each.turns, laid[name], strict=True)
        ]
        for name, each in given.items()
    }, notes


def _each_turn(conversations: Sequence[list[Turn]], tokenizer: Tokenizer) -> list[list[Laid]]:
    """Every turn's tokens; all turns are encoded together, which is much faster."""
    every = iter(lay_out([turn for turns in conversations for turn in turns], tokenizer))
    return [[next(every) for _ in turns] for turns in conversations]


def _answered(
    part: Portion, laid: Mapping[str, list[Laid]], rows: Mapping[str, TextRows], settings: Settings
) -> np.ndarray:
    """The rows of a split whose answer, or some of it, was not cut off."""
    is_there = np.array([bool(laid[part.source][row].is_answer_T.any()) for row in part.rows], dtype=bool)
    for row in part.rows[~is_there]:
        reason = f"what is asked takes all of data.context={settings.limit.most} tokens"
        settings.bad.report(rows[part.source].place(int(row)), reason)
    return part.rows[is_there]


def _split(rows_N: np.ndarray, whole: list[Laid]) -> RaggedSplit:
    tokens = Ragged.of([each.ids_T for each in whole]).shortened(1)
    targets = Ragged.of([np.where(each.is_answer_T, each.ids_T, NO_TARGET) for each in whole]).shortened(1)
    fields = {
        "id": torch.from_numpy(rows_N),
        "tokens": tokens,
        "targets": targets.shifted(1, NO_TARGET),
        "lengths": tokens.lengths_N,
        "bytes": torch.tensor([int(each.bytes_T[each.is_answer_T].sum()) for each in whole]),
    }
    return RaggedSplit(fields, tokens.lengths_N)
