"""Texts, or pairs of texts, of one class or of several: to tokens, splits, and what a model must know."""

# N rows, C classes

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from dlrun.contracts import Dataset, DataSpec, Tools
from dlrun.data._assemble import portions, spec_of
from dlrun.data._bad import BadRows
from dlrun.data._labels import check_classes
from dlrun.data._ragged import Ragged, RaggedSplit
from dlrun.data._splits import HoldOut
from dlrun.data._text_inputs import TextInputs
from dlrun.data._text_rows import TextRows, fingerprint, take
from dlrun.data._vocabulary import Found, Limit, Vocabulary
from dlrun.tokens import FILE, Tokenizer


@dataclass(frozen=True)
class Settings:
    """What a user may set of texts with labels; see `text.build`."""

    vocabulary: Vocabulary
    limit: Limit
    hold_out: HoldOut
    bad: BadRows


def assemble(
    given: Mapping[str, TextRows],
    classes: tuple[str, ...],
    columns: tuple[str, ...],
    target: str,
    settings: Settings,
    tools: Tools,
    notes: list[str],
) -> Dataset:
    """The Dataset of rows with "first" and perhaps "second" texts, and labels.

    columns: where the texts are from, which is where new rows have them.   target: where the class is from.
    notes: what was said so far.
    """
    known = spec_of(tools)
    one = {name: rows.labels for name, rows in given.items() if rows.labels is not None and rows.labels.ndim == 1}
    parts, made = portions({name: len(rows) for name, rows in given.items()}, one or None, settings.hold_out)
    if known is None and one:
        made += check_classes(one["train"][parts["train"].rows], classes, given["train"].name, target)
    found = settings.vocabulary.find(
        lambda: (texts[row] for texts in given["train"].texts.values() for row in parts["train"].rows), tools
    )
    whole, cut = _encoded(given, found, settings.limit)
    spec = known or _spec(found.tokenizer, classes, columns, settings.limit, is_multi=not one)
    said = (*notes, *made, *found.notes, *cut, *settings.bad.notes())
    return Dataset(spec, take(whole, parts), TextInputs(spec), said, fingerprint(given, parts))


def _encoded(
    given: Mapping[str, TextRows], vocabulary: Found, limit: Limit
) -> tuple[dict[str, RaggedSplit], list[str]]:
    """The rows of each given split, and a sentence if some were cut, or are unknown."""
    tokenizer = vocabulary.tokenizer
    ids = {name: [tokenizer.encode_batch(texts) for texts in rows.texts.values()] for name, rows in given.items()}
    is_pair = len(next(iter(ids.values()))) > 1
    added = tokenizer.frames[is_pair].num_tokens
    lengths = {
        name: np.array([added + sum(map(len, row)) for row in zip(*columns, strict=True)], dtype=np.int64)
        for name, columns in ids.items()
    }
    notes = limit.check(given, lengths, "text")
    notes += vocabulary.unknown({name: chain.from_iterable(columns) for name, columns in ids.items()})
    found = {}
    for name, rows in given.items():
        tokens = Ragged.of([tokenizer.framed(*row, most=limit.most) for row in zip(*ids[name], strict=True)])
        assert rows.labels is not None
        fields = {
            "id": torch.from_numpy(rows.rows_N),
            "tokens": tokens,
            "lengths": tokens.lengths_N,
            "label" if rows.labels.ndim == 1 else "labels": torch.from_numpy(rows.labels),
        }
        found[name] = RaggedSplit(fields, tokens.lengths_N)
    return found, notes


def _spec(
    tokenizer: Tokenizer, classes: tuple[str, ...], columns: tuple[str, ...], limit: Limit, is_multi: bool
) -> DataSpec:
    name = "labels" if is_multi else "classes"
    return DataSpec(
        ("tokens", "lengths"),
        "labels" if is_multi else "label",
        {"vocabulary": tokenizer.size, "length": limit.most, name: len(classes)},
        {"tokens": (limit.most,), "lengths": ()},
        classes,
        {"kind": "text", "form": "classification", "columns": list(columns), "on_long": limit.on_long},
        {FILE: tokenizer.to_json()},
    )
