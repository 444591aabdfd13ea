"""Conversations: who says what, and how that is laid out in tokens, the same for training and for a prompt."""

# T tokens

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dlrun.errors import did_you_mean
from dlrun.tokens import ChatTemplate, Role, Tokenizer

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "function_call": "assistant",  # what it calls a tool with
    "tool": "user", "function": "user", "observation": "user",  # what the tool answers
}  # fmt: skip
_BY_KEYS = (("role", "content"), ("from", "value"))
_ALL = 1 << 60  # more tokens than any conversation has


class Turn(NamedTuple):
    """What one of them says."""

    role: Role
    text: str


class Words(NamedTuple):
    """Tokens of what a turn says, and how many bytes each stands for; int32 [T] both."""

    ids_T: np.ndarray
    bytes_T: np.ndarray


class Laid(NamedTuple):
    """Tokens of a conversation, which of them are answers, and how many bytes each stands for."""

    ids_T: np.ndarray  # int32
    is_answer_T: np.ndarray  # bool
    bytes_T: np.ndarray  # int32


def turns_of(messages: object) -> list[Turn]:
    """The turns of a list such as [{"role": "user", "content": "…"}, …] or [{"from": "human", "value": "…"}, …].

    Raises: ValueError with the reason, where it is no such list.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("there are no messages")
    return [_turn(message, number) for number, message in enumerate(messages)]


def _turn(message: object, number: int) -> Turn:
    if not isinstance(message, Mapping):
        raise ValueError(f"message {number} is no mapping of role and content")
    keys = next((keys for keys in _BY_KEYS if keys[0] in message and keys[1] in message), None)
    if keys is None:
        raise ValueError(f"message {number} has neither role and content nor from and value")
    role, text = message[keys[0]], message[keys[1]]
    if str(role).lower() not in _ROLES:
        raise ValueError(f"message {number} has the unknown role '{role}' ({did_you_mean(str(role), _ROLES)})")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"message {number} says nothing")
    return Turn(_ROLES[str(role).lower()], text.strip())


def question(wanted: str, given: str = "") -> Turn:
    """What the user says of an instruction and what it is about."""
    return Turn("user", f"{wanted.strip()}\n\n{given.strip()}" if given.strip() else wanted.strip())


def words_of(turns: Sequence[Turn], tokenizer: Tokenizer) -> list[Words]:
    """The words of each turn; all turns are encoded together, which is much faster."""
    return [Words(*said) for said in tokenizer.encode_with_bytes([turn.text for turn in turns])]


def num_tokens(turns: Sequence[Turn], words: Sequence[Words], template: ChatTemplate, asks: bool = False) -> int:
    """Of a conversation as it is laid out."""
    return template.num_tokens([turn.role for turn in turns], asks) + sum(len(each.ids_T) for each in words)


def lay_out(
    turns: Sequence[Turn], words: Sequence[Words], template: ChatTemplate, most: int = _ALL, asks: bool = False
) -> Laid:
    """The conversation without the oldest turns that `most` tokens have no room for.

    It is longer where its last question is. Answers are the assistant's words, and the token that ends them.
    asks: whether the assistant is to answer now.   Raises: DlrunError with code DATA for what a template refuses.
    """
    while num_tokens(turns, words, template, asks) > most and (left := _without_oldest(turns)):
        turns, words = [turns[index] for index in left], [words[index] for index in left]
    laid, answered = [], False
    for part in template.parts([turn.role for turn in turns], asks):
        if isinstance(part, int):
            answered = turns[part].role == "assistant"
            laid.append(Laid(words[part].ids_T, np.full(len(words[part].ids_T), answered), words[part].bytes_T))
        else:
            is_answer = np.zeros(len(part), bool)
            if answered and template.end in part:
                is_answer[: 1 + np.argmax(part == template.end)] = True
            laid.append(Laid(part, is_answer, np.zeros(len(part), np.int32)))
    return Laid(*(np.concatenate(columns) for columns in zip(*laid, strict=True)))


def _without_oldest(turns: Sequence[Turn]) -> list[int]:
    """What is left without the first turn, but for the system's, and the answer to it; nothing if it is the last
    question."""
    first = 1 if turns[0].role == "system" else 0
    last_question = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=first)
    if first >= last_question:
        return []
    after = next(index for index in range(first + 1, last_question + 1) if turns[index].role != "assistant")
    return [*range(first), *range(after, len(turns))]


def prompt_tokens(turns: Sequence[Turn], tokenizer: Tokenizer, template: ChatTemplate, most: int = _ALL) -> np.ndarray:
    """int32 [T]: the conversation so far, up to where the assistant answers; the end of a last question that is too
    long is what stays."""
    ids_T = lay_out(turns, words_of(turns, tokenizer), template, most, asks=True).ids_T
    return ids_T if len(ids_T) <= most else np.concatenate([ids_T[:1], ids_T[len(ids_T) - most + 1 :]])
