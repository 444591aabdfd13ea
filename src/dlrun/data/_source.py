"""A table of rows as it was found on disk or on the hub: nothing decoded yet, safe to send to a worker process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dlrun.data._tree import Archive

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


@dataclass(frozen=True)
class Source:
    """The rows of one given split.

    table: an Arrow table, or the `datasets` wrapper of one: memory-mapped, and pickled by its path.
    name: what errors call it ("train.parquet", "ORG/NAME train").
    folder: where relative picture paths start.   archive: the zip file that picture paths are members of.
    class_names: the classes of columns that declare them (ClassLabel); those inside a column as "objects.category".
    images: columns declared as pictures.
    media: columns declared as something that is neither (Audio, Video, …), and what.
    """

    table: pa.Table
    name: str
    folder: Path | None = None
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    media: dict[str, str] = field(default_factory=dict)
    archive: Archive | None = None

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    def place(self, row: int) -> str:
        """Where a row is, for an error; rows count from 0."""
        return f"{self.name}, row {row}"


def from_dataset(dataset: datasets.Dataset, name: str, folder: Path | None = None) -> Source:
    """A Source of what `datasets` loaded, with the classes and pictures that its features declare."""
    from datasets import Audio, Image, Pdf, Video

    features = dataset.features.items()
    classes = {name: names for column, kind in features for name, names in _class_names(column, kind)}
    pictures = tuple(column for column, kind in features if isinstance(kind, Image))
    media = {column: type(kind).__name__.lower() for column, kind in features if isinstance(kind, Audio | Video | Pdf)}
    # The wrapper and not the bare table inside it: the latter would be pickled by value.
    return Source(cast("pa.Table", dataset.data), name, folder, classes, pictures, media)


def _class_names(name: str, kind: object) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The classes that a feature declares, and those of the features inside it."""
    from datasets import ClassLabel, LargeList, List

    if isinstance(kind, ClassLabel):
        yield name, tuple(kind.names)
    elif isinstance(kind, Mapping):
        for inner, feature in kind.items():
            yield from _class_names(f"{name}.{inner}", feature)
    elif isinstance(kind, List | LargeList):
        yield from _class_names(name, kind.feature)
