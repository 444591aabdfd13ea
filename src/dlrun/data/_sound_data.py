"""Rows of sound to a Dataset: missing splits, joined utterances, statistics, and what a model must know."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from dlrun.contracts import Dataset, DataSpec, Split, Tools
from dlrun.data._assemble import portions, spec_of
from dlrun.data._bad import BadRows
from dlrun.data._labels import check_classes
from dlrun.data._ragged import RaggedSplit
from dlrun.data._sound_inputs import SoundInputs, moments
from dlrun.data._sound_rows import SoundRows, joined_rows, read_sounds, read_words, split_of, without_unknown
from dlrun.data._source import Source
from dlrun.data._splits import HoldOut
from dlrun.data._text_labels import read_classes
from dlrun.data._whisper_frames import Frames, WhisperFrames
from dlrun.errors import DlrunError, Exit, did_you_mean
from dlrun.tokens import CHARACTERS_FILE, Characters


class Join(NamedTuple):
    """fewest to most recordings of whoever the column `by` names become one utterance; see `speech.build`."""

    fewest: int
    most: int
    by: str
    rounds: int


def join_of(sizes: list, setting: str, by: str = "", rounds: int = 1) -> Join:
    """Raises: DlrunError naming the setting that is out of its range."""
    if len(sizes) != 2 or not all(type(size) is int for size in sizes) or not 1 <= sizes[0] <= sizes[1]:
        raise DlrunError(f"data.{setting}: {sizes} is not [FEWEST, MOST]", f"data.{setting}=[3,6]")
    if rounds < 1:
        raise DlrunError(f"data.join_rounds: {rounds} is not at least 1")
    return Join(sizes[0], sizes[1], by, rounds)


class BySplit(NamedTuple):
    """The rows with these values in a column are those of valid and of test."""

    column: str
    values: dict[str, list[str]]


@dataclass(frozen=True)
class Settings:
    """What a user may set of sound; see `speech.build`."""

    spectrogram: Frames
    hold_out: HoldOut
    bad: BadRows
    normalise: Literal["training", "recording"] = "training"
    max_seconds: float = 30.0
    join: Join | None = None
    by_split: BySplit | None = None
    of_samples: bool = False


@dataclass(frozen=True)
class Columns:
    """Where the recordings are, and what is said of them: a class, or a transcript (setting: what chose it)."""

    audio: str
    target: str | None
    transcript: str | None


def rows_of(
    sources: Mapping[str, Source], columns: Columns, settings: Settings, tools: Tools, lower: bool
) -> tuple[dict[str, SoundRows], tuple[str, ...], Characters | None]:
    """The good rows of each given split, and the classes or the characters."""
    labels = read_classes(sources, columns.target, spec_of(tools), settings.bad) if columns.target else None
    owners = {name: _owners(name, source, settings.by_split) for name, source in sources.items()}
    rate, texts = settings.spectrogram.rate, {}
    sounds = {name: read_sounds(each, columns.audio, rate, settings.max_seconds, settings.bad)
              for name, each in sources.items()}  # fmt: skip
    characters = None
    if columns.transcript:
        said = {n: read_words(each, "transcript", columns.transcript, settings.bad) for n, each in sources.items()}
        characters = _characters(said, owners, tools, lower)
        texts = {n: without_unknown(sources[n].name, said[n], characters, settings.bad) for n in sources}
    by = settings.join.by if settings.join else None
    speakers = {name: read_words(each, "join_by", by, settings.bad) if by else None for name, each in sources.items()}
    found = {}
    for name, source in sources.items():
        columns_of = [sounds[name], texts.get(name), speakers[name]]
        there = [column for column in columns_of if column is not None]
        is_good = np.array([all(cell is not None for cell in cells) for cells in zip(*there, strict=True)], bool)
        for split in sorted(set(owners[name])):
            at = np.flatnonzero(is_good & (owners[name] == split))
            if not len(at):
                raise DlrunError(f"{source.name}: there is no row of {split} that can be read", code=Exit.DATA)
            picked = [None if column is None else [column[row] for row in at.tolist()] for column in columns_of]
            label = None if labels is None else labels.by_source[name][at]
            found[split] = SoundRows(source.name, at.astype(np.int64), picked[0] or [], picked[1], label, picked[2])  # type: ignore[arg-type]
    return found, labels.names if labels else (), characters


def _owners(name: str, source: Source, by_split: BySplit | None) -> np.ndarray:
    """The split of each row: that of its source, or what a column says."""
    owners = np.full(len(source), name, dtype=object)
    if by_split is None:
        return owners
    if by_split.column not in source.columns:
        hint = did_you_mean(by_split.column, source.columns)
        raise DlrunError(f"data.split_column: {source.name} has no column '{by_split.column}'", hint)
    said = np.array([str(value) for value in source.table.column(by_split.column).to_pylist()], dtype=object)
    for split, values in by_split.values.items():
        if unknown := sorted(set(values) - set(said)):
            raise DlrunError(
                f"data.{split}_values: no row has '{unknown[0]}' in column '{by_split.column}'",
                did_you_mean(unknown[0], set(said)),
            )
        owners[np.isin(said, values)] = split
    return owners


def _characters(
    said: Mapping[str, Sequence[str | None]], owners: Mapping[str, np.ndarray], tools: Tools, lower: bool
) -> Characters:
    """The vocabulary of the run this one stands on, else of the training rows."""
    known = spec_of(tools)
    if known is not None and CHARACTERS_FILE in known.files:
        return Characters.from_json(known.files[CHARACTERS_FILE])
    if tools.assets is not None and (tools.assets / CHARACTERS_FILE).is_file():
        return Characters.from_json((tools.assets / CHARACTERS_FILE).read_bytes(), str(tools.assets / CHARACTERS_FILE))
    texts = (text for name, column in said.items() for text, split in zip(column, owners[name], strict=True)
             if text is not None and split == "train")  # fmt: skip
    return Characters.of(texts, lower)


def assemble(
    given: Mapping[str, SoundRows],
    classes: tuple[str, ...],
    characters: Characters | None,
    columns: Columns,
    settings: Settings,
    tools: Tools,
    notes: Sequence[str],
) -> Dataset:
    """The Dataset of these rows. notes: what was said so far."""
    known = spec_of(tools)
    labels = {name: rows.labels_N for name, rows in given.items() if rows.labels_N is not None}
    parts, made = portions({name: len(rows) for name, rows in given.items()}, labels or None, settings.hold_out)
    if known is None and labels:
        made += check_classes(labels["train"][parts["train"].rows], classes, given["train"].name, str(columns.target))
    ordered = [name for name in ("train", "valid", "test") if name in parts]
    rows = {name: given[parts[name].source].take(parts[name].rows) for name in ordered}
    if settings.join:
        rows, said = _joined(rows, settings.join)
        made += said
    splits = {name: split_of(each, characters) for name, each in rows.items()}
    spec = known or _spec(splits["train"], classes, characters, columns, settings)
    total = hashlib.blake2b(digest_size=16)
    for name, each in rows.items():
        total.update(name.encode() + each.digest())
    said = (*notes, *made, *settings.bad.notes())
    found: dict[str, Split] = dict(splits)
    return Dataset(spec, found, SoundInputs(spec), said, total.hexdigest())


def _joined(rows: Mapping[str, SoundRows], join: Join) -> tuple[dict[str, SoundRows], list[str]]:
    """Utterances in place of recordings, each split by itself; only training recordings are used several times."""
    found, notes = {}, []
    for name, each in rows.items():
        found[name], left = joined_rows(each, join.fewest, join.most, join.rounds if name == "train" else 1, name)
        rest = f"; {left} recordings of speakers with under {join.fewest} are left out" if left else ""
        notes.append(f"{name}: {len(found[name]):,} utterances of {join.fewest} to {join.most} recordings{rest}")
    return found, notes


def _spec(
    train: RaggedSplit, classes: tuple[str, ...], characters: Characters | None, columns: Columns, settings: Settings
) -> DataSpec:
    spectrogram = settings.spectrogram
    if isinstance(spectrogram, WhisperFrames):
        mean, std = [0.0] * spectrogram.size, [1.0] * spectrogram.size
    else:
        mean, std = moments(train, spectrogram, settings.hold_out.seed)
    longest = int(spectrogram.frames(train.lengths).max())
    target = {"classes": len(classes)}
    if characters is not None:  # what ends a transcript is one more to say
        counts_N = train.fields["num_targets"]
        assert isinstance(counts_N, Tensor)
        target = {"characters": characters.size, "target_length": int(counts_N.max()) + 1}
    assets = {
        "kind": "audio", "audio_column": columns.audio, "spectrogram": spectrogram.to_json(),
        "normalise": settings.normalise, "mean": mean, "std": std,
    }  # fmt: skip
    files = {} if characters is None else {CHARACTERS_FILE: characters.to_json()}
    if settings.of_samples:
        most = int(train.lengths.max())
        shapes = {"samples": (most,), "lengths": ()}
        field = "label" if characters is None else "targets"
        return DataSpec(("samples", "lengths"), field, target | {"length": most}, shapes, classes, assets, files)
    return DataSpec(
        ("spectrogram", "frames"),
        "label" if characters is None else "targets",
        target | {"features": spectrogram.size, "length": longest},
        {"spectrogram": (longest, spectrogram.size), "frames": ()},
        classes,
        assets,
        files,
    )
