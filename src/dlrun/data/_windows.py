"""Language to model: documents as one stream of tokens, cut into windows; each token is to be said after the last."""

# M tokens of a stream, N windows of at most T tokens

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from dlrun.contracts import NO_TARGET, Dataset, DataSpec, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._ragged import Ragged, RaggedSplit
from dlrun.data._text_inputs import TextInputs
from dlrun.data._vocabulary import Vocabulary
from dlrun.errors import DlrunError, Exit
from dlrun.tokens import FILE, Tokenizer


@dataclass(frozen=True)
class Settings:
    """What a user may set of text to go on with; see `language.build`."""

    vocabulary: Vocabulary
    context: int
    stride: int | None
    valid_fraction: float
    test_fraction: float


class Stream(NamedTuple):
    """Tokens of all documents, end to end, and how many bytes of the text each stands for."""

    ids_M: np.ndarray  # int32
    bytes_M: np.ndarray  # int32


def assemble(
    given: Mapping[str, Sequence[str]], column: str, settings: Settings, tools: Tools, notes: list[str]
) -> Dataset:
    """The Dataset of the documents of each given split. column: what new rows call their text."""
    known = spec_of(tools)
    context = settings.context if known is None else known.sizes["context"]
    if context < 1:
        raise DlrunError(f"data.context: {context} is not at least 1")
    if settings.stride is not None and settings.stride < 1:
        raise DlrunError(f"data.stride: {settings.stride} is not at least 1")
    documents, made = _divided(given, settings)
    found = settings.vocabulary.find(lambda: documents["train"], tools)
    tokenizer, splits, sizes, ids = found.tokenizer, {}, [], {}
    for name in (name for name in ("train", "valid", "test") if name in documents):
        stream = _stream(documents[name], tokenizer)
        if len(stream.ids_M) < 2:
            raise DlrunError(f"the {name} split has {len(stream.ids_M)} tokens; two are needed", code=Exit.DATA)
        splits[name] = _windows(stream, context, (settings.stride or context) if name == "train" else None)
        sizes.append(f"{name} {len(stream.ids_M):,}")
        ids[name] = [stream.ids_M]
    spec = known or DataSpec(
        ("tokens",),
        "targets",
        {"vocabulary": tokenizer.size, "context": context},
        {"tokens": (context,)},
        (),
        {"kind": "text", "form": "language", "columns": [column]},
        {FILE: tokenizer.to_json()},
    )
    said = (*notes, *made, *found.notes, f"tokens: {', '.join(sizes)}", *found.unknown(ids))
    return Dataset(spec, splits, TextInputs(spec), said, _fingerprint(documents))


def _divided(given: Mapping[str, Sequence[str]], settings: Settings) -> tuple[dict[str, Sequence[str]], list[str]]:
    """The documents of every split: those that were not given are cut off the end of train, by characters."""
    documents = dict(given)
    if "train" not in given:
        return documents, []
    fractions = {"valid": settings.valid_fraction, "test": settings.test_fraction}
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise DlrunError(f"data.{name}_fraction: {fraction} is not in [0, 1)")
    total = sum(map(len, given["train"]))
    wanted = {name: fraction for name, fraction in fractions.items() if name not in given and fraction}
    ends, left, notes = [], 1.0 - sum(wanted.values()), []
    if left <= 0:
        raise DlrunError("data.valid_fraction and data.test_fraction leave nothing to train on")
    for fraction in wanted.values():
        ends.append(int(left * total + 1e-6))
        left += fraction
    parts = _cut(given["train"], ends)
    documents["train"] = parts[0]
    for name, part in zip(wanted, parts[1:], strict=True):
        documents[name] = part
        size = sum(map(len, part))
        notes.append(f"{name}: the {'last ' if name == list(wanted)[-1] else 'next '}{size:,} of {total:,} characters")
    return documents, notes


def _cut(documents: Sequence[str], ends: Sequence[int]) -> list[list[str]]:
    """Documents end to end, cut at these numbers of characters."""
    parts: list[list[str]] = [[] for _ in range(len(ends) + 1)]
    start = 0
    for text in documents:
        edges = [0, *(min(max(end - start, 0), len(text)) for end in ends), len(text)]
        for part, (left, right) in zip(parts, pairwise(edges), strict=True):
            if right > left:
                part.append(text[left:right])
        start += len(text)
    return parts


def _stream(documents: Sequence[str], tokenizer: Tokenizer) -> Stream:
    """The tokens of all documents; with several, the end token stands after each."""
    encoded = tokenizer.encode_with_bytes(documents)
    if len(encoded) == 1:
        return Stream(*encoded[0])
    end, nothing = np.array([tokenizer.end], np.int32), np.zeros(1, np.int32)
    ended = [(np.concatenate([ids, end]), np.concatenate([num_bytes, nothing])) for ids, num_bytes in encoded]
    return Stream(*(np.concatenate([nothing[:0], *column]) for column in zip(*ended, strict=True)))


def _windows(stream: Stream, context: int, stride: int | None) -> RaggedSplit:
    """Windows of the stream. stride: tokens between the starts of two, all of them full; None: end to end, where the
    last may be shorter, so that every token but the first is said once."""
    last = len(stream.ids_M) - 1  # what the last token would be asked is not known
    if stride is not None and last >= context:
        starts_N = np.arange(0, last - context + 1, stride, dtype=np.int64)
    else:
        starts_N = np.arange(0, last, context, dtype=np.int64)
    lengths_N = np.minimum(context, last - starts_N)
    before = np.concatenate([[0], np.cumsum(stream.bytes_M, dtype=np.int64)])
    tokens = Ragged(torch.from_numpy(stream.ids_M), torch.from_numpy(starts_N), torch.from_numpy(lengths_N))
    return RaggedSplit(
        {
            "id": torch.arange(len(starts_N)),
            "tokens": tokens,
            "targets": tokens.shifted(1, NO_TARGET),
            "lengths": tokens.lengths_N,
            "bytes": torch.from_numpy(before[starts_N + 1 + lengths_N] - before[starts_N + 1]),
        }
    )


def _fingerprint(documents: Mapping[str, Sequence[str]]) -> str:
    """A hash of every split's text."""
    total = hashlib.blake2b(digest_size=16)
    for name, texts in sorted(documents.items()):
        total.update(f"\x1d{name}".encode())
        for text in texts:
            total.update(b"\x1f" + text.encode())
    return total.hexdigest()
