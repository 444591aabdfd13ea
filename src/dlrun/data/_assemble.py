"""From readers of rows to a Dataset: missing splits, tensors or a stream, statistics, and what a model must know."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Split, Tools
from dlrun.data._bad import BadRows
from dlrun.data._held import Reader, fits, hold, stream
from dlrun.data._images import Decoder
from dlrun.data._inputs import make_inputs
from dlrun.data._source import Source
from dlrun.data._splits import HoldOut, divide
from dlrun.data._statistics import given, measured
from dlrun.data._survey import choose_decoder
from dlrun.errors import DlrunError, Exit


@dataclass(frozen=True)
class Settings:
    """What a user may set of any data that is read from files or the hub; see `files.build`."""

    hold_out: HoldOut
    bad: BadRows
    image_size: int | list | None = None
    channels: int | None = None
    memory: Literal["auto", "always", "never"] = "auto"
    mean: list | None = None
    std: list | None = None
    crop: list | None = None

    def decoder(self, sources: Mapping[str, Source], column: str, parts: Parts, known: DataSpec | None) -> Decoder:
        """What the pictures of a column are made into, from what those of the training rows look like."""
        part = next(parts[name] for name in ("train", *parts) if name in parts)
        source = sources[part.source]
        return choose_decoder(source, column, part.rows, self.image_size, self.channels, self.bad, known, self.crop)


class Portion(NamedTuple):
    """The rows of a split: which source they are of, and their row numbers there."""

    source: str
    rows: np.ndarray


Parts = Mapping[str, Portion]


def spec_of(tools: Tools) -> DataSpec | None:
    """The spec of the run this one stands on, if any: its classes, columns and statistics are used, never remade."""
    return getattr(tools, "spec", None)


def portions(
    sizes: Mapping[str, int], labels: Mapping[str, np.ndarray] | None, hold_out: HoldOut
) -> tuple[dict[str, Portion], list[str]]:
    """The rows of every split; those that were not given are made out of train.

    sizes: rows of each given split.   labels: their class indices, to stratify by; -1 of a row that is left out.
    """
    parts = {
        name: Portion(name, np.flatnonzero(labels[name] >= 0) if labels else np.arange(size))
        for name, size in sizes.items()
    }
    for name, part in parts.items():
        if not len(part.rows):
            raise DlrunError(f"data: no row of the {name} split has a label", "name another column: data.target=COLUMN",
                             Exit.DATA)  # fmt: skip
    if "train" not in sizes:
        return parts, []
    rows = parts["train"].rows
    made, notes = divide(len(rows), labels["train"][rows] if labels else None, set(sizes), hold_out)
    return parts | {name: Portion("train", rows[at]) for name, at in made.items()}, notes


def finish(
    readers: Mapping[str, Sequence[Reader]],
    parts: Parts,
    settings: Settings,
    draft: DataSpec,
    known: DataSpec | None,
    notes: Sequence[str],
) -> Dataset:
    """The Dataset of the readers of each source. draft: the spec but for mean and std; known is used if there is one.

    notes: what was said so far.
    """
    splits, held = _splits(readers, parts, settings)
    spec, measures = (known, []) if known else _with_moments(draft, splits["train"], settings)
    said = (*notes, *held, *measures, *settings.bad.notes())
    return Dataset(spec, splits, make_inputs(spec), said, _fingerprint(readers, parts))


def _splits(
    readers: Mapping[str, Sequence[Reader]], parts: Parts, settings: Settings
) -> tuple[dict[str, Split], list[str]]:
    row_bytes = {source: sum(reader.row_bytes for reader in group) for source, group in readers.items()}
    num_bytes = sum(len(part.rows) * row_bytes[part.source] for part in parts.values())
    in_memory = fits(settings.memory, num_bytes)
    found: dict[str, Split] = {}
    for source, group in readers.items():
        mine = {name: part.rows for name, part in parts.items() if part.source == source}
        found |= (hold if in_memory else stream)(group, mine, settings.bad)
    ordered = {name: found[name] for name in ("train", "valid", "test") if name in found}
    size = f"{num_bytes / 2**30:.1f} GiB"
    is_forced = settings.memory != "auto"
    return ordered, [] if in_memory or is_forced else [f"rows are streamed: held in memory they would take {size}"]


def _with_moments(draft: DataSpec, train: Split, settings: Settings) -> tuple[DataSpec, list[str]]:
    """The spec with mean and std of its input, and a sentence about how they were found."""
    field = draft.inputs[0]
    moments, notes = given(settings.mean, settings.std, draft.shapes[field][0]), []
    if moments is None:
        moments, notes = measured(train, field, settings.hold_out.seed)
    assets = draft.assets | {"mean": moments.mean, "std": moments.std}
    return dataclasses.replace(draft, assets=assets), notes


def _fingerprint(readers: Mapping[str, Sequence[Reader]], parts: Parts) -> str:
    """A hash of what is in the splits: the undecoded rows, all that is said of them, and which rows are whose."""
    total = hashlib.blake2b(digest_size=16)
    for source, group in sorted(readers.items()):
        mine = {name: parts[name].rows for name in sorted(parts) if parts[name].source == source}
        rows = np.unique(np.concatenate(list(mine.values())))
        for reader in group:
            total.update(reader.digest(rows))
        for name, part in mine.items():
            total.update(name.encode() + part.tobytes())
    return total.hexdigest()
