"""Conversations: who says what, and how that is laid out in tokens, the same for training and for a prompt.

Each turn is the marker of its role, its words, and the end token; one beginning token stands before them all.
"""

# T tokens

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dlrun.errors import did_you_mean
from dlrun.tokens import Role, Tokenizer

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


class Laid(NamedTuple):
    """Tokens of a turn or of a conversation, which of them are the answer's, and how many bytes each stands for."""

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


def lay_out(turns: Sequence[Turn], tokenizer: Tokenizer) -> list[Laid]:
    """Each turn's tokens; words of the assistant and the end token after them are answers."""
    said = tokenizer.encode_with_bytes([turn.text for turn in turns])
    return [_laid(turn, ids, num_bytes, tokenizer) for turn, (ids, num_bytes) in zip(turns, said, strict=True)]


def _laid(turn: Turn, ids: np.ndarray, num_bytes: np.ndarray, tokenizer: Tokenizer) -> Laid:
    marker = tokenizer.marker(turn.role)
    is_answer = np.full(len(marker) + len(ids) + 1, turn.role == "assistant")
    is_answer[: len(marker)] = False
    return Laid(
        np.concatenate([marker, ids, [tokenizer.end]]).astype(np.int32),
        is_answer,
        np.concatenate([np.zeros(len(marker)), num_bytes, [0]]).astype(np.int32),
    )


def joined(turns: Sequence[Turn], laid: Sequence[Laid], beginning: int, most: int) -> Laid:
    """The conversation within `most` tokens: the oldest turns give way first, then the end of the last one.

    A system's turn at the start stays, and so does the last question.
    """
    kept = list(range(len(turns)))
    first = 1 if turns[0].role == "system" else 0
    last_question = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=first)
    while 1 + sum(len(laid[index].ids_T) for index in kept) > most and kept[first:] and kept[first] < last_question:
        del kept[first]
        while kept[first] < last_question and turns[kept[first]].role == "assistant":
            del kept[first]
    parts = [Laid(np.array([beginning], np.int32), np.zeros(1, bool), np.zeros(1, np.int32))]
    parts += [laid[index] for index in kept]
    return Laid(*(np.concatenate(columns)[:most] for columns in zip(*parts, strict=True)))


def prompt_tokens(turns: Sequence[Turn], tokenizer: Tokenizer, most: int = _ALL) -> np.ndarray:
    """int32 [T]: the conversation so far and the marker after which the assistant answers; the end is what stays."""
    marker = tokenizer.marker("assistant")
    room = max(1, most - len(marker))
    laid = lay_out(turns, tokenizer)
    whole = joined(turns, laid, tokenizer.beginning, most=_ALL).ids_T
    if len(whole) > room:
        fitting = joined(turns, laid, tokenizer.beginning, most=room).ids_T
        whole = fitting if len(fitting) < room else np.concatenate([whole[:1], whole[len(whole) - room + 1 :]])
    return np.concatenate([whole, marker]).astype(np.int32)
