"""Text to tokens and back: vocabularies trained from texts or pretrained ones; and texts as bytes in a batch."""

# B texts, T tokens, V vocabulary, L bytes

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import tokenizers
import torch
from tokenizers import decoders
from torch import Tensor

from dlrun import _tokens_training as training
from dlrun._tokens_characters import CHARACTERS_FILE as CHARACTERS_FILE
from dlrun._tokens_characters import Characters as Characters
from dlrun._tokens_coverage import Coverage as Coverage
from dlrun._tokens_pretrained import find
from dlrun._tokens_template import TEMPLATE_FILE as TEMPLATE_FILE
from dlrun._tokens_template import ChatTemplate as ChatTemplate
from dlrun._tokens_template import Role as Role
from dlrun.errors import DlrunError, Exit

Kind = Literal["char", "word", "bpe", "pretrained"]
PADDING = 0  # what stands after a row's last token, whatever the vocabulary has at 0
FILE = "tokenizer.json"
TARGET_FILE = "target_tokenizer.json"  # of data whose answers are in another language than its questions
BETWEEN_REFERENCES = "\x1e"  # the record separator of ASCII

# What a role is called, the first that a vocabulary has. The encoder-decoders that have no token for the beginning
# (T5, Marian) let the decoder begin with padding.
_NAMES = {
    "unknown": ("<unk>", "[UNK]"),
    "beginning": ("<s>", "[CLS]", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "<pad>"),
    "end": ("</s>", "[SEP]", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>"),
    "separator": ("<sep>", "[SEP]", "</s>"),
    "mask": ("<mask>", "[MASK]"),
    "system": ("<|system|>",),
    "user": ("<|user|>",),
    "assistant": ("<|assistant|>",),
}
_AT_ONCE = 4096  # texts encoded together
_LONG = 1 << 15  # characters; longer texts are encoded in pieces
_BREAK = re.compile(r"(?<=\S)\n")  # no word and no token of our own kinds reaches across it


class Frame(NamedTuple):
    """The special tokens around a text (first, last), and between two (first, middle, last)."""

    first: list[int]
    middle: list[int]
    last: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.first) + len(self.middle) + len(self.last)


class Tokenizer:
    """A vocabulary, and the way texts are cut into it. Text that spells a special token is text, nothing more."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said, so that no fork is warned about
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.specials = frozenset(index for index, token in added.items() if token.special)
        self._names = {added[index].content: index for index in self.specials}
        self.kind: Kind = training.kind_of(backend)
        self.size = max(backend.get_vocab_size(), max(added, default=-1) + 1)

    @staticmethod
    def train(
        kind: Literal["char", "word", "bpe"],
        texts: Iterable[str],
        *,
        size: int,
        min_count: int = 1,
        lower: bool = False,
        framed: bool = False,
    ) -> Tokenizer:
        """A vocabulary of the characters, words or byte pairs of these texts; the same texts give the same one.

        size: tokens at most, the special ones among them.   min_count: rarer characters, words and pairs are left out.
        framed: texts begin with the beginning token and end with the end token.
        """
        pieces = (piece for text in texts for piece in _pieces(text))
        return Tokenizer(training.train(kind, pieces, size, min_count, lower, framed))

    @staticmethod
    def pretrained(source: str) -> Tokenizer:
        """That of a file, of a folder with a tokenizer.json, or of a model of the Hugging Face hub."""
        file = find(source, FILE)
        try:
            return Tokenizer.from_json(file.read_bytes(), str(file))
        except OSError as error:
            raise DlrunError(f"{file}: cannot be read: {error.strerror or error}", code=Exit.DATA) from error

    @staticmethod
    def from_json(content: bytes, name: str = FILE) -> Tokenizer:
        """The inverse of `to_json`. name: what an error calls it."""
        try:
            return Tokenizer(tokenizers.Tokenizer.from_str(content.decode()))
        except Exception as error:  # the library raises nothing more exact
            reason = (str(error).splitlines() or ["it is empty"])[0]
            raise DlrunError(f"{name}: is no vocabulary of the tokenizers library: {reason}", code=Exit.DATA) from error

    def to_json(self) -> bytes:
        """All of it, as the tokenizers library writes it."""
        return self._backend.to_str().encode()

    # ---------------------------------------------------------------- special tokens

    @property
    def names(self) -> dict[str, str]:
        """What templates call the special tokens that this vocabulary has."""
        roles = {"bos_token": "beginning", "eos_token": "end", "unk_token": "unknown"}
        spelled = {name: [each for each in _NAMES[role] if each in self._names] for name, role in roles.items()}
        return {name: found[0] for name, found in spelled.items() if found}

    @property
    def unknown(self) -> int:
        return self._special("unknown")

    @property
    def beginning(self) -> int:
        return self._special("beginning")

    @property
    def end(self) -> int:
        return self._special("end")

    @property
    def separator(self) -> int:
        return self._special("separator")

    @property
    def mask(self) -> int:
        return self._special("mask")

    def _special(self, role: str) -> int:
        """Raises DlrunError where the vocabulary has no such token."""
        found = [self._names[name] for name in _NAMES[role] if name in self._names]
        if not found:
            has = ", ".join(sorted(self._names)[:8]) or "none"
            raise DlrunError(f"the vocabulary has no {role} token; its special tokens are {has}")
        return found[0]

    def marker(self, role: Role) -> list[int]:
        """What comes before the words of a role: its special token, else its name in the vocabulary's own tokens."""
        index = self._names.get(_NAMES[role][0])
        return self.encode(f"\n{_NAMES[role][0]}\n") if index is None else [index]

    @cached_property
    def frames(self) -> tuple[Frame, Frame]:
        """The special tokens around one text, and around two."""
        one = self._backend.encode("a", add_special_tokens=True)
        two = self._backend.encode("a", "a", add_special_tokens=True)
        return _frame(one.ids, one.special_tokens_mask), _frame(two.ids, two.special_tokens_mask)

    # ---------------------------------------------------------------- there

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, no special ones among them."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [T] for each text, no special tokens among them."""
        if self.kind == "char":
            return [self._ids_by_character[_code_points(self._lowered(text))] for text in texts]
        if self.kind == "pretrained" or not any(len(text) > _LONG for text in texts):
            return list(self._encoded(texts))
        pieces = [list(_pieces(text)) for text in texts]
        encoded = self._encoded([piece for group in pieces for piece in group])
        return [np.concatenate([next(encoded) for _ in group]) for group in pieces]

    def encode_markup(self, text: str) -> np.ndarray:
        """int32 [T] of what a template writes, whose special tokens are meant as such."""
        self._backend.encode_special_tokens = False
        try:
            return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        finally:
            self._backend.encode_special_tokens = True

    def _encoded(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for start in range(0, len(texts), _AT_ONCE):
            batch = list(texts[start : start + _AT_ONCE])
            for encoding in self._backend.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=np.int32)

    def framed(self, first: np.ndarray, second: np.ndarray | None = None, most: int | None = None) -> np.ndarray:
        """int32 [T]: one text or two within the special tokens the vocabulary puts around them.

        most: tokens there may be; the end of the longer text is cut off until they fit.
        """
        frame = self.frames[second is not None]
        room = None if most is None else max(0, most - frame.num_tokens)
        if second is None:
            return np.concatenate([frame.first, first[:room], frame.last]).astype(np.int32)
        if room is not None:
            first = first[: max(room - len(second), (room + 1) // 2)]
            second = second[: room - len(first)]
        return np.concatenate([frame.first, first, frame.middle, second, frame.last]).astype(np.int32)

    def encode_with_bytes(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text int32 [T] tokens, and int32 [T]: bytes of the text (UTF-8) each stands for; together, all."""
        if self.kind == "char":
            codes = [_code_points(self._lowered(text)) for text in texts]
            return [(self._ids_by_character[found], _bytes_of_code_points(found)) for found in codes]
        if self._bytes_by_token is not None:
            return [(ids, self._bytes_by_token[ids]) for ids in self.encode_batch(texts)]
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [_with_bytes(encoding, text) for encoding, text in zip(encoded, texts, strict=True)]

    @property
    def lowers(self) -> bool:
        """Whether capitals become small letters, so that no text it says has any."""
        normalizer = self._backend.normalizer
        return normalizer is not None and normalizer.normalize_str("A") == "a"

    def _lowered(self, text: str) -> str:
        return text.lower() if self._backend.normalizer is not None else text

    @cached_property
    def _ids_by_character(self) -> np.ndarray:
        """int32: for each code point its token; of a vocabulary of characters (the library takes seconds for that)."""
        table = np.full(0x110000, self.unknown, dtype=np.int32)
        for token, index in self._backend.get_vocab(with_added_tokens=False).items():
            if len(token) == 1:
                table[ord(token)] = index
        return table

    @cached_property
    def _bytes_by_token(self) -> np.ndarray | None:
        """int32 [V]: bytes that each token stands for, where tokens are spelled in bytes."""
        if not isinstance(self._backend.decoder, decoders.ByteLevel):
            return None
        table = np.zeros(self.size, dtype=np.int32)
        for token, index in self._backend.get_vocab(with_added_tokens=False).items():
            table[index] = 0 if index in self.specials else len(token)  # a character of its spelling is a byte
        return table

    # ---------------------------------------------------------------- and back

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens; of the special ones only the unknown is shown."""
        return self._backend.decode([index for index in ids if index not in self._unsaid], skip_special_tokens=False)

    def spelled(self, index: int) -> str:
        """A token as the vocabulary writes it, special ones too."""
        return self._backend.id_to_token(index) or ""

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """As `decode`, for each row."""
        said = [[index for index in ids if index not in self._unsaid] for ids in rows]
        return self._backend.decode_batch(said, skip_special_tokens=False)

    @cached_property
    def unknowns(self) -> frozenset[int]:
        """What stands for text that the vocabulary does not know; nothing where it is spelled in bytes."""
        return frozenset(self._names[name] for name in _NAMES["unknown"] if name in self._names)

    @cached_property
    def _unsaid(self) -> frozenset[int]:
        return self.specials - self.unknowns


def _frame(ids: list[int], is_special: list[int]) -> Frame:
    """What stands before, between and after the texts."""
    places = [index for index, special in enumerate(is_special) if not special]
    first, last = places[0], places[-1]
    middle = [token for token, special in zip(ids[first:last], is_special[first:last], strict=True) if special]
    return Frame(ids[:first], middle, ids[last + 1 :])


def _with_bytes(encoding: tokenizers.Encoding, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and their bytes, by where they lie in the text; what lies between two belongs to the second."""
    before = np.concatenate([[0], np.cumsum(_bytes_of_code_points(_code_points(text)))])
    ends = np.maximum.accumulate(np.array([end for _, end in encoding.offsets], dtype=np.int64))
    ends[-1:] = len(text)  # blanks at the end belong to the last token
    return np.array(encoding.ids, dtype=np.int32), np.diff(before[ends], prepend=0).astype(np.int32)


def _pieces(text: str) -> Iterator[str]:
    """A long text cut before ends of lines, which changes none of its tokens."""
    start = 0
    while found := _BREAK.search(text, start + _LONG):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _bytes_of_code_points(codes: np.ndarray) -> np.ndarray:
    """int32: bytes of each in UTF-8."""
    return 1 + (codes >= 0x80).astype(np.int32) + (codes >= 0x800) + (codes >= 0x10000)


# ---------------------------------------------------------------- texts in a batch


def to_bytes(texts: Sequence[str]) -> Tensor:
    """uint8 [B, L]: texts in UTF-8, zeros after the last byte."""
    encoded = [text.encode() for text in texts]
    longest = max(map(len, encoded), default=0)
    joined = b"".join(content.ljust(longest, b"\0") for content in encoded)
    return torch.from_numpy(np.frombuffer(joined, dtype=np.uint8).copy()).reshape(len(encoded), longest)


def to_texts(texts_BL: Tensor) -> list[str]:
    """The inverse of `to_bytes`."""
    return [row.tobytes().rstrip(b"\0").decode() for row in texts_BL.cpu().numpy()]


def references(text: str) -> list[str]:
    """The texts that were put into one as several references of an example."""
    return text.split(BETWEEN_REFERENCES)
