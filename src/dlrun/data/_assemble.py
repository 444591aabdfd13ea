"""From the rows that were found to a Dataset: columns, classes, missing splits, tensors or a stream, and the spec."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Split, Tools
from dlrun.data._bad import BadRows
from dlrun.data._columns import Columns, check, choose
from dlrun.data._held import Reader, fits, hold, stream
from dlrun.data._images import Decoder
from dlrun.data._inputs import make_inputs
from dlrun.data._labels import check_classes, class_names, read_labels, to_indices
from dlrun.data._numbers import Numbers
from dlrun.data._pictures import Pictures
from dlrun.data._source import Source
from dlrun.data._splits import HoldOut, divide
from dlrun.data._statistics import given, measured
from dlrun.data._survey import survey
from dlrun.errors import DlrunError


@dataclass(frozen=True)
class Settings:
    """What a user may set of any data that is read from files or the hub; see `files.build`."""

    hold_out: HoldOut
    bad: BadRows
    target: str | None = None
    image: str | None = None
    columns: list | None = None
    image_size: int | None = None
    channels: int | None = None
    memory: Literal["auto", "always", "never"] = "auto"
    mean: list | None = None
    std: list | None = None


class Portion(NamedTuple):
    """The rows of a split: which source they are of, and their row numbers there."""

    source: str
    rows: np.ndarray


def spec_of(tools: Tools) -> DataSpec | None:
    """The spec of the run this one stands on, if any: its classes, columns and statistics are used, never remade."""
    return getattr(tools, "spec", None)


def assemble(sources: Mapping[str, Source], settings: Settings, known: DataSpec | None, notes: list[str]) -> Dataset:
    """The Dataset of one source for each given split. notes: what was said so far."""
    first = sources.get("train") or next(iter(sources.values()))
    columns, guesses = _columns(first, settings, known)
    for source in sources.values():
        check(source, columns)
    classes, labels = _labels(sources, columns, known)
    parts, made = _parts(labels, settings.hold_out)
    if known is None:
        made += check_classes(labels["train"][parts["train"].rows], classes, first.name, columns.target)
    readers = _readers(sources, columns, settings, known, parts)
    splits, held = _splits(readers, labels, parts, settings)
    spec, measures = (known, []) if known else _spec(columns, classes, readers, splits["train"], settings)
    notes = [*notes, *guesses, *made, *held, *measures, *settings.bad.notes()]
    return Dataset(spec, splits, make_inputs(spec), tuple(notes), _fingerprint(readers, labels, parts))


def _columns(source: Source, settings: Settings, known: DataSpec | None) -> tuple[Columns, list[str]]:
    if known is None:
        return choose(source, settings.target, settings.image, settings.columns)
    assets = known.assets
    target = settings.target or assets["target_column"]
    if assets["kind"] == "image":
        return Columns(target, settings.image or assets["image_column"]), []
    return Columns(target, None, tuple(assets["columns"])), []


def _labels(
    sources: Mapping[str, Source], columns: Columns, known: DataSpec | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The classes in order, and each source's int64 class indices."""
    coded = {name: read_labels(source, columns.target) for name, source in sources.items()}
    if known is not None:
        classes = known.labels
    else:
        classes = class_names(coded["train"], [other for name, other in coded.items() if name != "train"])
    labels = {name: to_indices(sources[name], columns.target, coded[name], classes) for name in sources}
    return classes, labels


def _parts(labels: Mapping[str, np.ndarray], hold_out: HoldOut) -> tuple[dict[str, Portion], list[str]]:
    """The rows of every split; those that were not given are made out of train."""
    parts = {name: Portion(name, np.arange(len(rows))) for name, rows in labels.items()}
    if "train" not in labels:
        return parts, []
    made, notes = divide(labels["train"], set(labels), hold_out)
    return parts | {name: Portion("train", rows) for name, rows in made.items()}, notes


def _readers(
    sources: Mapping[str, Source],
    columns: Columns,
    settings: Settings,
    known: DataSpec | None,
    parts: Mapping[str, Portion],
) -> dict[str, Reader]:
    if columns.image is None:
        return {name: Numbers(source, columns.features) for name, source in sources.items()}
    first = next(name for name in ("train", *sources) if name in sources)
    decoder = _decoder(sources[first], columns.image, parts[first].rows, settings, known)
    return {name: Pictures(source, columns.image, decoder) for name, source in sources.items()}


def _decoder(source: Source, column: str, rows: np.ndarray, settings: Settings, known: DataSpec | None) -> Decoder:
    if known is not None:
        is_scaled = settings.image_size is not None or known.assets["image_size"] is not None
        return Decoder(*known.shapes["image"], resize=is_scaled)
    if settings.image_size is not None and settings.image_size < 1:
        raise DlrunError(f"data.image_size: {settings.image_size} is not a number of pixels above 0")
    if settings.channels not in (None, 1, 3):
        raise DlrunError(f"data.channels: {settings.channels} is neither 1 (grey) nor 3 (colour)")
    return survey(source, column, rows, settings.image_size, settings.channels, settings.bad)


def _splits(
    readers: Mapping[str, Reader],
    labels: Mapping[str, np.ndarray],
    parts: Mapping[str, Portion],
    settings: Settings,
) -> tuple[dict[str, Split], list[str]]:
    num_bytes = sum(len(part.rows) * readers[part.source].row_bytes for part in parts.values())
    in_memory = fits(settings.memory, num_bytes)
    found: dict[str, Split] = {}
    for source, reader in readers.items():
        mine = {name: part.rows for name, part in parts.items() if part.source == source}
        found |= (hold if in_memory else stream)(reader, labels[source], mine, settings.bad)
    ordered = {name: found[name] for name in ("train", "valid", "test") if name in found}
    size = f"{num_bytes / 2**30:.1f} GiB"
    is_forced = settings.memory != "auto"
    return ordered, [] if in_memory or is_forced else [f"rows are streamed: held in memory they would take {size}"]


def _spec(
    columns: Columns, classes: tuple[str, ...], readers: Mapping[str, Reader], train: Split, settings: Settings
) -> tuple[DataSpec, list[str]]:
    """What a model must know, and a sentence about how the statistics were found."""
    reader = readers["train"]
    assets: dict[str, Any] = {"target_column": columns.target}
    if isinstance(reader, Pictures):
        shape = reader.decoder.shape
        sizes: dict[str, int] = dict(zip(("channels", "height", "width"), shape, strict=True))
        assets |= {"kind": "image", "image_column": columns.image, "image_size": settings.image_size}
    else:
        shape = (len(columns.features),)
        sizes = {"features": len(columns.features)}
        assets |= {"kind": "table", "columns": list(columns.features)}
    moments, notes = given(settings.mean, settings.std, shape[0]), []
    if moments is None:
        moments, notes = measured(train, reader.field, settings.hold_out.seed)
    assets |= {"mean": moments.mean, "std": moments.std}
    sizes["classes"] = len(classes)
    return DataSpec((reader.field,), "label", sizes, {reader.field: shape}, classes, assets), notes


def _fingerprint(readers: Mapping[str, Reader], labels: Mapping[str, np.ndarray], parts: Mapping[str, Portion]) -> str:
    """A hash of what is in the splits: the undecoded rows, their labels, and which rows are whose."""
    total = hashlib.blake2b(digest_size=16)
    for source, reader in sorted(readers.items()):
        mine = {name: parts[name].rows for name in sorted(parts) if parts[name].source == source}
        total.update(reader.digest(np.unique(np.concatenate(list(mine.values())))))
        for name, rows in mine.items():
            total.update(name.encode() + rows.tobytes() + labels[source][rows].tobytes())
    return total.hexdigest()
