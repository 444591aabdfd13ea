"""Numbers spelled out in English, and their digits: made, not read, so every task on text can be tried at once."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data import _classified, _dialogues, _pairs, _windows
from dlrun.data._bad import BadRows
from dlrun.data._conversation import Turn
from dlrun.data._splits import HoldOut
from dlrun.data._text_inputs import TextInputs
from dlrun.data._text_rows import TextRows
from dlrun.data._vocabulary import Limit, Vocabulary
from dlrun.errors import DlrunError
from dlrun.randomness import permutation

_BELOW_TWENTY = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MOST = 999_999
_LONGEST = 80  # characters that the longest of them takes, with room for special tokens


def build(
    tools: Tools,
    *,
    kind: Literal["translation", "language", "classification", "chat"] = "translation",
    reverse: bool = False,
    size: int = 4000,
    largest: int = 9999,
    tokenizer: Literal["char", "word", "bpe"] = "char",
    vocabulary_size: int = 500,
    framed: bool = False,
    context: int = 128,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    split_seed: int | None = None,
) -> Dataset:
    """Different numbers, drawn at random; the same ones for the same seed.

    Settings:
        kind: what is made of them, pairs to translate, lines of text to go on with, texts to call even or odd, or
            questions with answers.
        reverse: from digits to words, not from words to digits.
        size: numbers drawn.
        largest: numbers are from 0 to this one, 999999 at most.
        tokenizer: what texts are cut into, characters, words or byte pairs.
        vocabulary_size: tokens at most, nine special ones among them.
        framed: of texts to classify, they begin with a beginning token and end with an end token.
        context: tokens of a window or of a conversation.
        valid_fraction: share of the numbers held out to choose by, in [0, 1).
        test_fraction: share of the numbers held out to score on, in [0, 1).
        split_seed: draws the numbers and chooses those held out; the run's seed unless set.
    """
    if not 1 <= largest <= _MOST:
        raise DlrunError(f"data.largest: {largest} is not between 1 and {_MOST}")
    if not 10 <= size <= largest + 1:
        raise DlrunError(f"data.size: {size} is not between 10 and the {largest + 1:,} numbers there are")
    seed = tools.seed if split_seed is None else split_seed
    numbers = permutation(largest + 1, seed, "number words")[:size].tolist()
    said, digits = [spelled(number) for number in numbers], [str(number) for number in numbers]
    source, target = (digits, said) if reverse else (said, digits)
    vocabulary = Vocabulary(tokenizer, vocabulary_size, 1, False, None, framed)
    hold_out, bad, rows_N = HoldOut(seed, valid_fraction, test_fraction), BadRows(), np.arange(size)
    limit = Limit(_LONGEST, "raise", "largest")
    if kind == "translation":
        rows = TextRows("numbers", rows_N, {"source": source, "target": target, "reference": target})
        pairs = _pairs.Settings(vocabulary, True, "", limit, limit, hold_out, bad)
        return _pairs.assemble({"train": rows}, ("text", "target"), pairs, tools, [])
    if kind == "language":
        text = "".join(f"{asked} = {answer}\n" for asked, answer in zip(source, target, strict=True))
        windows = _windows.Settings(vocabulary, context, None, valid_fraction, test_fraction)
        return _windows.assemble({"train": [text]}, "text", windows, tools, [])
    if kind == "chat":
        what = "Spell {}." if reverse else "Write {} in digits."
        turns = [
            [Turn("user", what.format(asked)), Turn("assistant", answer)]
            for asked, answer in zip(source, target, strict=True)
        ]
        dialogues = _dialogues.Settings(vocabulary, Limit(context, "cut", "context"), "", "plain", hold_out, bad)
        return _dialogues.assemble({"train": _dialogues.Dialogues.of("numbers", rows_N, turns)}, dialogues, tools, [])
    rows = TextRows("numbers", rows_N, {"first": source}, np.array([number % 2 for number in numbers]))
    classified = _classified.Settings(vocabulary, limit, hold_out, bad)
    return _classified.assemble({"train": rows}, ("even", "odd"), ("text",), "parity", classified, tools, [])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return TextInputs(spec)


def spelled(number: int) -> str:
    """A number from 0 to 999,999 in English words, e.g. twelve thousand three hundred forty-five."""
    if number < 20:
        return _BELOW_TWENTY[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_BELOW_TWENTY[ones]}" if ones else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    high, low = divmod(number, unit)
    return f"{spelled(high)} {name}" + (f" {spelled(low)}" if low else "")
