"""A mixed table in memory: its cells read once, its rows held as numbers and categories, ready for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from dlrun.contracts import Dataset, DataSpec
from dlrun.data import _numbers
from dlrun.data._assemble import Parts, Portion, portions
from dlrun.data._bad import BadRows
from dlrun.data._columns import Columns, Wanted, check, choose_targets, require
from dlrun.data._held import MemorySplit
from dlrun.data._labels import check_classes, given_by
from dlrun.data._mixed_cells import Numbers, Words, read_numbers, read_words
from dlrun.data._mixed_columns import FILE, MixedColumns, measure_category, measure_number
from dlrun.data._mixed_inputs import MixedInputs
from dlrun.data._mixed_kinds import Kinds, choose_kinds
from dlrun.data._source import Source
from dlrun.data._splits import HoldOut
from dlrun.data._targets import label_indices
from dlrun.errors import DlrunError, Exit


@dataclass(frozen=True)
class Settings:
    """What a user may set of a mixed table; see `table.build`."""

    wanted: Wanted
    hold_out: HoldOut
    bad: BadRows
    numeric: list | None = None
    categorical: list | None = None
    ignore: list | None = None
    missing: tuple[str, ...] = ()
    scaling: Literal["standard", "quantile"] = "standard"
    min_count: int = 1


@dataclass
class _Read:
    """The cells of one source. target: class indices int64 [N], or numbers float32 [N, T]."""

    numbers: dict[str, Numbers]
    words: dict[str, Words]
    target: np.ndarray
    is_good: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))


def assemble(sources: Mapping[str, Source], settings: Settings, known: DataSpec | None, notes: list[str]) -> Dataset:
    """The Dataset of one source for each given split. notes: what was said so far."""
    first = sources.get("train") or next(iter(sources.values()))
    targets, is_number, guesses = _chosen_targets(first, settings.wanted, known)
    stored = MixedColumns.from_bytes(known.files[FILE]) if known else None
    kinds, typed = _kinds(first, targets, settings, stored)
    for source in sources.values():
        check(source, Columns(targets, is_number, None))
        for name in (*kinds.numbers, *kinds.categories):
            require(source, "path", name)
    classes, labels = targets, None
    if not is_number:
        classes, labels = label_indices(sources, Columns(targets, False, None), known, settings.bad)
    missing = frozenset(stored.missing if stored else settings.missing)
    read = {
        name: _read(source, kinds, missing, targets, labels[name] if labels else None, settings.bad)
        for name, source in sources.items()
    }
    parts, made = _good_parts(sources, read, labels, settings.hold_out)
    is_new = known is None
    if known is None or stored is None:
        train, rows = read["train"], parts["train"].rows
        if labels is not None:
            made += check_classes(train.target[rows], classes, first.name, targets[0])
        stored = _measured(train, rows, kinds, settings)
        known = _spec(stored, targets, is_number, classes, train.target[rows])
    splits, digest = _splits(read, parts, stored, known.target)
    made += _unknown(sources, read, parts, stored, is_new=is_new)
    return Dataset(known, splits, MixedInputs(known), (*notes, *guesses, *typed, *made, *settings.bad.notes()), digest)


def _kinds(
    source: Source, targets: tuple[str, ...], settings: Settings, stored: MixedColumns | None
) -> tuple[Kinds, list[str]]:
    """The columns of the source run, or those of this table and sentences for what was guessed."""
    if stored is None:
        said = (settings.numeric, settings.categorical, settings.ignore)
        return choose_kinds(source, targets, *said, frozenset(settings.missing))
    numbers, categories = ([column.name for column in side] for side in (stored.numbers, stored.categories))
    return Kinds(tuple(numbers), tuple(categories)), []


def _good_parts(
    sources: Mapping[str, Source], read: Mapping[str, _Read], labels: Mapping[str, np.ndarray] | None, hold_out: HoldOut
) -> tuple[dict[str, Portion], list[str]]:
    """The rows of every split that could be read, and sentences for those made out of train."""
    parts, made = portions({name: len(source) for name, source in sources.items()}, labels, hold_out)
    good = {name: Portion(part.source, part.rows[read[part.source].is_good[part.rows]]) for name, part in parts.items()}
    for name, part in good.items():
        if not len(part.rows):
            raise DlrunError(f"{sources[part.source].name}: no row of the {name} split can be read", code=Exit.DATA)
    return good, made


def _measured(train: _Read, rows: np.ndarray, kinds: Kinds, settings: Settings) -> MixedColumns:
    """The columns as the training rows have them."""
    return MixedColumns(
        tuple(measure_number(name, train.numbers[name], rows, settings.scaling) for name in kinds.numbers),
        tuple(measure_category(name, train.words[name], rows, settings.min_count) for name in kinds.categories),
        settings.missing,
    )


def _chosen_targets(source: Source, wanted: Wanted, known: DataSpec | None) -> tuple[tuple[str, ...], bool, list[str]]:
    if known is None:
        return choose_targets(source, wanted)
    names = wanted.target or list(known.assets["target_columns"])
    return tuple(names) if isinstance(names, list) else (names,), known.target == "target", []


def _read(
    source: Source, kinds: Kinds, missing: frozenset[str], targets: tuple[str, ...], labels: np.ndarray | None,
    bad: BadRows,
) -> _Read:  # fmt: skip
    """The cells of a source, its bad rows reported in their order."""
    column = source.table.column
    read = _Read(
        {name: read_numbers(column(name), missing) for name in kinds.numbers},
        {name: read_words(column(name), missing) for name in kinds.categories},
        np.zeros(0) if labels is None else labels,
    )
    read.is_good = np.ones(len(source), dtype=bool)
    wrong: dict[int, str] = {}
    for name, found in read.numbers.items():
        for row, said in found.bad.items():
            wrong.setdefault(row, f"'{said}' in column '{name}' is no number")
    for row in sorted(wrong):
        read.is_good[row] = False
        bad.report(source.place(row), wrong[row])
    if labels is None:
        values, is_good = _numbers.Numbers(source, targets, "target").read(np.arange(len(source)), bad)
        read.target, read.is_good = values["target"], read.is_good & is_good
    return read


def _spec(
    columns: MixedColumns, targets: tuple[str, ...], is_number: bool, classes: tuple[str, ...], train: np.ndarray
) -> DataSpec:
    """What a model must know. train: the targets of the training rows."""
    sizes = {"numbers": columns.num_numbers, "categories": len(columns.categories)}
    sizes["targets" if is_number else "classes"] = len(classes)
    assets = {
        "kind": "tabular",
        "columns": columns.names,
        "target_columns": list(targets),
        "cardinalities": columns.cardinalities,
        "category_columns": [column.name for column in columns.categories],
    }
    if is_number:
        deviation = train.astype(np.float64).std(0)
        assets["target_mean"] = train.astype(np.float64).mean(0).tolist()
        assets["target_std"] = np.where(deviation > 0, deviation, 1.0).tolist()
    else:
        assets |= given_by(classes)
    shapes = {"numbers": (sizes["numbers"],), "categories": (sizes["categories"],)}
    return DataSpec(
        ("numbers", "categories"), "target" if is_number else "label", sizes, shapes, classes, assets,
        {FILE: columns.to_bytes()},
    )  # fmt: skip


def _unknown(
    sources: Mapping[str, Source], read: Mapping[str, _Read], parts: Parts, columns: MixedColumns, *, is_new: bool
) -> list[str]:
    """A sentence for each split and column with categories that have no code of their own. is_new: they were measured
    on this train split, where such are the rare ones that `min_count` leaves out."""
    notes = []
    for split, (source, rows) in parts.items():
        for column in columns.categories if not (is_new and split == "train") else ():
            words = read[source].words[column.name]
            if found := column.unknown(words._replace(codes=words.codes[rows])):
                place = sources[source].place(int(rows[found.first]))
                notes.append(f"{split}: {found.note(column.name, place)}")
    return notes


def _splits(read: Mapping[str, _Read], parts: Parts, columns: MixedColumns, target: str) -> tuple[dict, str]:
    """The splits, and a hash of all that is in them."""
    held, digest = {}, hashlib.blake2b(digest_size=16)
    for name, cells in read.items():
        rows = len(cells.is_good)
        fields = columns.fields({key: found.values for key, found in cells.numbers.items()}, cells.words, rows)
        held[name] = {"id": np.arange(rows), **fields, target: cells.target}
    splits = {}
    for name in (name for name in ("train", "valid", "test") if name in parts):
        source, rows = parts[name]
        fields = {key: torch.from_numpy(values[rows]) for key, values in held[source].items()}
        splits[name] = MemorySplit(fields)
        digest.update(name.encode())
        for values in fields.values():
            digest.update(values.numpy().tobytes())
    return splits, digest.hexdigest()
