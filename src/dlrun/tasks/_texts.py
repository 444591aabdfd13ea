"""What tasks that say texts share: the vocabulary of a run, prompts in a batch, the text of what was said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dlrun.contracts import DataSpec
from dlrun.decoding import Generation
from dlrun.errors import DlrunError
from dlrun.tokens import FILE, TARGET_FILE, Tokenizer

_CONTEXT = 8  # tokens before a text that decide whether it begins with a blank
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what is decoded of a character that has not all of its bytes yet


def source_tokenizer(spec: DataSpec) -> Tokenizer:
    """The vocabulary of a run's inputs. Raises: DlrunError for data without texts."""
    if FILE not in spec.files:
        raise DlrunError(f"this task says texts; this data set has no vocabulary ({FILE})", "see: dlrun list data")
    return Tokenizer.from_json(spec.files[FILE])


def target_tokenizer(spec: DataSpec) -> Tokenizer:
    """The vocabulary of what a run's models say: that of the inputs where there is no other."""
    if TARGET_FILE not in spec.files:
        return source_tokenizer(spec)
    return Tokenizer.from_json(spec.files[TARGET_FILE], TARGET_FILE)


def end_of(tokenizer: Tokenizer) -> int | None:
    """The token that ends a text; None for a vocabulary without one."""
    try:
        return tokenizer.end
    except DlrunError:
        return None


def generation_of(**settings: Any) -> Generation:
    """How a task generates. Raises: DlrunError that begins with "task."."""
    try:
        return Generation(**settings)
    except DlrunError as error:
        raise DlrunError(f"task.{error.message}", error.hint) from error


def following(tokenizer: Tokenizer, before: Sequence[int], said: Sequence[int]) -> str:
    """The text of what was said after some tokens, with the blank that may stand between."""
    near = list(before[-_CONTEXT:])
    start, whole = tokenizer.decode(near), tokenizer.decode([*near, *said])
    return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(said)


def pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens as they come; put together, what decoding all of them gives."""
    said: list[int] = []
    shown = text = ""
    for token in tokens:
        said.append(token)
        text = tokenizer.decode(said)
        # A word's decoder takes a blank back before a full stop: what a later token may change has to wait.
        if text.startswith(shown) and text.rstrip() == text and not text.endswith(_UNFINISHED):
            yield text[len(shown) :]
            shown = text
    yield text[len(shown) :]
