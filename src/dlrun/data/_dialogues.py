"""Conversations to tokens, of which only the assistant's are to be said; splits, and what a model must know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from dlrun.contracts import NO_TARGET, Dataset, DataSpec, Tools
from dlrun.data._assemble import Portion, portions, spec_of
from dlrun.data._bad import BadRows
from dlrun.data._conversation import Laid, Turn, Words, lay_out, num_tokens, words_of
from dlrun.data._ragged import Ragged, RaggedSplit
from dlrun.data._splits import HoldOut
from dlrun.data._text_inputs import TextInputs
from dlrun.data._text_rows import TextRows, fingerprint, take
from dlrun.data._vocabulary import Limit, Vocabulary
from dlrun.errors import DlrunError
from dlrun.tokens import FILE, TEMPLATE_FILE, ChatTemplate, Tokenizer

_BETWEEN = "\x1e"  # of turns, in what is hashed


@dataclass(frozen=True)
class Settings:
    """What a user may set of conversations; see `chat.build`."""

    vocabulary: Vocabulary
    limit: Limit
    system: str
    template: str | None
    hold_out: HoldOut
    bad: BadRows

    def chat_template(self, tokenizer: Tokenizer, tools: Tools) -> ChatTemplate:
        """That of the run this one is or stands on, the one that is set, or the pretrained vocabulary's own."""
        if (known := spec_of(tools)) is not None:
            return ChatTemplate.of(known.files, tokenizer)
        if self.template == "plain":
            return ChatTemplate(tokenizer)
        if self.template is None and tools.assets is not None and (tools.assets / FILE).is_file():
            kept = tools.assets / TEMPLATE_FILE
            return ChatTemplate.of({TEMPLATE_FILE: kept.read_bytes()} if kept.is_file() else {}, tokenizer)
        pretrained = self.vocabulary.pretrained
        its = ChatTemplate.pretrained(pretrained, tokenizer) if pretrained else ChatTemplate(tokenizer)
        return its if self.template is None else its.read(self.template)


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
    template = settings.chat_template(found.tokenizer, tools)
    layout = template.notes()  # first: what is wrong with a template is no fault of a row
    said = {name: _said(each, found.tokenizer, template) for name, each in given.items()}
    lengths = {name: np.array([each.num_tokens - 1 for each in them], np.int64) for name, them in said.items()}
    cut = settings.limit.check(rows, lengths, "conversation")  # the last token is said, not read
    cut += found.unknown({name: [words.ids_T for each in them for words in each.words] for name, them in said.items()})
    context = settings.limit.most
    laid = {name: [each.laid_out(template, context + 1) for each in them] for name, them in said.items()}
    parts = {
        name: part._replace(rows=_answered(part, laid[part.source], said[part.source], rows[part.source], settings))
        for name, part in parts.items()
    }
    whole = {name: _split(rows[name].rows_N, each) for name, each in laid.items()}
    spec = known or DataSpec(
        ("tokens",),
        "targets",
        {"vocabulary": found.tokenizer.size, "context": context},
        {"tokens": (context,)},
        (),
        {
            "kind": "text",
            "form": "chat",
            "columns": ["prompt"],
            "instead": ["messages", "conversations", "instruction"],
            "system": settings.system,
        },
        {FILE: found.tokenizer.to_json(), **template.files()},
    )
    told = (*notes, *made, *found.notes, *layout, *cut, *settings.bad.notes())
    return Dataset(spec, take(whole, parts), TextInputs(spec), told, fingerprint(rows, parts))


@dataclass(frozen=True)
class _Said:
    """A conversation in tokens. refusal: why the template cannot lay it out, if it cannot."""

    turns: list[Turn]
    words: list[Words]
    num_tokens: int
    refusal: str = ""

    def laid_out(self, template: ChatTemplate, most: int) -> Laid:
        """Within `most` tokens; nothing of one that is refused."""
        if self.refusal:
            return Laid(*(np.zeros(0, dtype) for dtype in (np.int32, bool, np.int32)))
        return Laid(*(column[:most] for column in lay_out(self.turns, self.words, template, most)))


def _said(given: Dialogues, tokenizer: Tokenizer, template: ChatTemplate) -> list[_Said]:
    every = iter(words_of([turn for turns in given.turns for turn in turns], tokenizer))
    found = []
    for turns in given.turns:
        words = [next(every) for _ in turns]
        try:
            found.append(_Said(turns, words, num_tokens(turns, words, template)))
        except DlrunError as error:
            found.append(_Said(turns, words, 1, error.message))
    return found


def _answered(part: Portion, laid: list[Laid], said: list[_Said], rows: TextRows, settings: Settings) -> np.ndarray:
    """The rows of a split whose answer, or some of it, was not cut off."""
    is_there = np.array([bool(laid[row].is_answer_T.any()) for row in part.rows], dtype=bool)
    for row in part.rows[~is_there]:
        reason = said[row].refusal or f"what is asked takes all of data.context={settings.limit.most} tokens"
        settings.bad.report(rows.place(int(row)), reason)
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
