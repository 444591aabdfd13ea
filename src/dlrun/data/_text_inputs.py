"""The input pipeline of a run on text, rebuilt from its DataSpec alone: new rows to tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dlrun.contracts import Batch, DataSpec, Row
from dlrun.data._conversation import Turn, prompt_tokens, question, turns_of
from dlrun.data._ragged import Ragged
from dlrun.errors import DlrunError, Exit, did_you_mean
from dlrun.tokens import FILE, TARGET_FILE, ChatTemplate, Coverage, Tokenizer


class TextInputs:
    """New rows by the names of their columns; what is stored as tokens needs no preparing."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        forms = {"classification": _classified, "seq2seq": _source, "language": _prompt, "chat": _conversation}
        self._lost = Lost()
        self._fields: Callable[[Sequence[Row]], Batch] = forms[spec.assets["form"]](spec, self._lost)

    def encode(self, rows: Sequence[Row]) -> Batch:
        """The tokens of new rows, and how many each has. Raises DlrunError naming the row that says nothing."""
        return {"id": torch.arange(len(rows)), **self._fields(rows)}

    def prepare(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch

    def notes(self) -> list[str]:
        """How much of the rows encoded so far was cut, and how much is unknown."""
        return self._lost.notes()


@dataclass
class Lost:
    """What new rows lose on their way to tokens. limit, read: set when the first row is cut."""

    rows: int = 0
    cut: int = 0
    limit: str = ""
    read: str = ""
    coverage: Coverage = Coverage()  # noqa: RUF009 - cannot be changed
    kind: str = ""

    def count(
        self,
        tokenizer: Tokenizer,
        whole: Sequence[np.ndarray],
        lengths: Sequence[int],
        most: int,
        setting: str,
        read: str,
    ) -> None:
        """Take note of texts. whole: tokens of all that they say.   lengths: of each row, with what frames it.
        read: what of a row that is longer than `most` is read."""
        self.rows += len(lengths)
        self.cut += sum(length > most for length in lengths)
        self.limit, self.read, self.kind = f"data.{setting}={most}", read, tokenizer.kind
        self.coverage = self.coverage.plus(Coverage.of(tokenizer, whole))

    def notes(self) -> list[str]:
        """A sentence for each kind of loss there was."""
        found = []
        if self.cut:
            found.append(f"{self.cut:,} of {self.rows:,} texts have over {self.limit} tokens: {self.read} is read")
        if self.coverage.unknown:
            share = f"{self.coverage.unknown:,} of {self.coverage.tokens:,}"
            found.append(f"{share} tokens are unknown to the run's vocabulary ({self.kind}), and say nothing")
        return found


def _classified(spec: DataSpec, lost: Lost) -> Callable[[Sequence[Row]], Batch]:
    """ "tokens" and "lengths" of one column of text, or of two."""
    tokenizer = Tokenizer.from_json(spec.files[FILE])
    columns, most = spec.assets["columns"], spec.sizes["length"]
    added = tokenizer.frames[len(columns) > 1].num_tokens

    def fields(rows: Sequence[Row]) -> Batch:
        texts = [[_text(row, column, index) for index, row in enumerate(rows)] for column in columns]
        encoded = list(zip(*(tokenizer.encode_batch(column) for column in texts), strict=True))
        lengths = [added + sum(map(len, parts)) for parts in encoded]
        for index, length in enumerate(lengths):
            _check_length(spec, length, most, "max_length", index)
        whole = [ids for parts in encoded for ids in parts]
        lost.count(tokenizer, whole, lengths, most, "max_length", "the beginning")
        return _padded("tokens", "lengths", [tokenizer.framed(*parts, most=most) for parts in encoded])

    return fields


def _source(spec: DataSpec, lost: Lost) -> Callable[[Sequence[Row]], Batch]:
    """ "source" and "source_lengths"; "tokens" [B, 1], which is what a decoder begins with."""
    tokenizer = Tokenizer.from_json(spec.files[FILE])
    beginning = Tokenizer.from_json(spec.files[TARGET_FILE]).beginning
    column, most = spec.assets["columns"][0], spec.sizes["length"]
    added = tokenizer.frames[0].num_tokens

    def fields(rows: Sequence[Row]) -> Batch:
        texts = [spec.assets["prefix"] + _text(row, column, index) for index, row in enumerate(rows)]
        encoded = tokenizer.encode_batch(texts)
        lengths = [added + len(ids) for ids in encoded]
        for index, length in enumerate(lengths):
            _check_length(spec, length, most, "max_length", index)
        lost.count(tokenizer, encoded, lengths, most, "max_length", "the beginning")
        source = _padded("source", "source_lengths", [tokenizer.framed(ids, most=most) for ids in encoded])
        return source | {"tokens": torch.full((len(rows), 1), beginning)}

    return fields


def _prompt(spec: DataSpec, lost: Lost) -> Callable[[Sequence[Row]], Batch]:
    """ "tokens" and "lengths" of what a language model is to go on with; of a long one, its end."""
    tokenizer = Tokenizer.from_json(spec.files[FILE])
    column, most = spec.assets["columns"][0], spec.sizes["context"]

    def fields(rows: Sequence[Row]) -> Batch:
        texts = [_text(row, "prompt" if "prompt" in row else column, index) for index, row in enumerate(rows)]
        encoded = tokenizer.encode_batch(texts)
        lost.count(tokenizer, encoded, [len(ids) for ids in encoded], most, "context", "the end")
        return _padded("tokens", "lengths", [ids[-most:] for ids in encoded])

    return fields


def _conversation(spec: DataSpec, lost: Lost) -> Callable[[Sequence[Row]], Batch]:
    """ "tokens" and "lengths" of a conversation up to where the assistant is to answer; of a long one, its end."""
    tokenizer, most = Tokenizer.from_json(spec.files[FILE]), spec.sizes["context"]
    template = ChatTemplate.of(spec.files, tokenizer)

    def fields(rows: Sequence[Row]) -> Batch:
        turns = [_turns(row, spec, index) for index, row in enumerate(rows)]
        whole = [prompt_tokens(each, tokenizer, template) for each in turns]
        lost.count(tokenizer, whole, [len(ids) for ids in whole], most, "context", "the end")
        return _padded("tokens", "lengths", [prompt_tokens(each, tokenizer, template, most) for each in turns])

    return fields


def _turns(row: Row, spec: DataSpec, index: int) -> list[Turn]:
    """What was said so far, in any of the ways a row can say it."""
    name = next((name for name in ("messages", "conversations") if name in row), None)
    if name is not None:
        try:
            turns = turns_of(row[name])
        except ValueError as error:
            raise DlrunError(f"row {index}: {error}", code=Exit.DATA) from error
        if turns[-1].role == "assistant":
            raise DlrunError(f"row {index}: the last message is the assistant's own", "end with the user's", Exit.DATA)
    elif "instruction" in row and "prompt" not in row:
        turns = [question(_text(row, "instruction", index), str(row.get("input") or ""))]
    else:
        turns = [Turn("user", _text(row, "prompt", index))]
    system = spec.assets["system"]
    return [Turn("system", system), *turns] if system and turns[0].role != "system" else turns


def _text(row: Row, column: str, index: int) -> str:
    """What a row says in a column. Raises DlrunError naming the row."""
    if column not in row:
        raise DlrunError(f"row {index} has no '{column}'", did_you_mean(column, map(str, row)))
    text = row[column]
    text = str(text) if isinstance(text, int) else text
    if not isinstance(text, str) or not text.strip():
        what = "is empty" if text is None or isinstance(text, str) else f"is {text!r}, and no text"
        raise DlrunError(f"row {index}: '{column}' {what}", code=Exit.DATA)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a pair, which JSON can spell
        raise DlrunError(f"row {index}: '{column}' is no Unicode text: {error.reason}", code=Exit.DATA) from error
    return text


def _check_length(spec: DataSpec, length: int, most: int, setting: str, index: int) -> None:
    if spec.assets["on_long"] == "raise" and length > most:
        raise DlrunError(
            f"row {index}: a text of {length:,} tokens is longer than data.{setting}={most}, "
            "and the run was trained to refuse such",
            "shorten it",
            Exit.DATA,
        )


def _padded(field: str, lengths: str, rows: list[np.ndarray]) -> Batch:
    ragged = Ragged.of(rows)
    return {field: ragged.padded(torch.arange(len(rows))), lengths: ragged.lengths_N}
