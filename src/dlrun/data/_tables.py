"""Files to tables of rows: parquet, csv and json through `datasets` (memory-mapped), class folders by their names."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dlrun.data._files import Part, find
from dlrun.data._images import SUFFIXES
from dlrun.data._source import Source, from_dataset
from dlrun.errors import DlrunError, Exit

# Types are inferred once over a whole file, not block by block: a column that turns from whole numbers to
# fractions late in the file is then no error. Only an empty cell is missing: "NA" and "None" can be labels.
_CSV = {"chunksize": 1 << 40, "keep_default_na": False, "na_values": [""]}


def local_sources(
    path: str, splits: Mapping[str, str] | None, needs_train: bool
) -> tuple[dict[str, Source], list[str]]:
    """The rows of each split of a local file or folder, and a sentence for what was guessed."""
    parts, notes = find(path, splits)
    if needs_train and "train" not in parts:
        raise DlrunError(
            f"data.path={path}: there is a {' and a '.join(parts)} split, but no training rows",
            "say which they are: data.splits.train=NAME",
        )
    return {split: load(part) for split, part in parts.items()}, notes


def load(part: Part) -> Source:
    """The rows of a part, nothing decoded. Raises DlrunError (Exit.DATA) naming the file that cannot be read."""
    source = _class_folders(part.files[0]) if part.kind == "pictures" else _table(part)
    if not len(source):
        raise DlrunError(f"{part.name} has no rows", code=Exit.DATA)
    return source


def _table(part: Part) -> Source:
    from datasets import Dataset

    for file in part.files:
        _check(file, part.kind)
    files: list = [str(file) for file in part.files]
    with loading(part.name):
        # Not load_dataset: it reports every use of a local file format to a server.
        if part.kind == "parquet":
            dataset = Dataset.from_parquet(files)
        elif part.kind == "json":
            dataset = Dataset.from_json(files)
        else:
            dataset = Dataset.from_csv(files, sep="\t" if part.kind == "tsv" else ",", **_CSV)
    assert isinstance(dataset, Dataset)
    return from_dataset(dataset, part.name, part.files[0].parent)


def _check(file: Path, kind: str) -> None:
    """Raises DlrunError for a file that cannot even be opened, by its own name among the shards."""
    with loading(file.name):
        with open(file, "rb") as opened:
            if not opened.read(1):
                raise DlrunError(f"{file.name} is empty (0 bytes)", code=Exit.DATA)
        if kind == "parquet":
            import pyarrow.parquet

            pyarrow.parquet.read_schema(file)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Quiet while `datasets` works; what it raises becomes a DlrunError with the cause in one line."""
    import datasets
    from datasets.utils.logging import CRITICAL

    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(CRITICAL)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DlrunError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _unreadable(name: str, error: Exception) -> DlrunError:
    """The innermost cause, as a line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return DlrunError(f"{name}: the disk is full", "HF_HOME=FOLDER puts the cache elsewhere", Exit.DISK)
    if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        where = f" {cause.filename}" if cause.filename else ""
        return DlrunError(
            f"{name}: no permission for{where or ' the file'}",
            "make the file readable; HF_HOME=FOLDER puts the cache of datasets where you may write",
            Exit.DATA,
        )
    if "corresponds to no data" in str(cause):
        return DlrunError(f"{name} has no rows", code=Exit.DATA)
    line = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    return DlrunError(f"{name} cannot be read: {line}", code=Exit.DATA)


def _class_folders(folder: Path) -> Source:
    """Pictures as (path, name of the class folder they lie under), sorted; other files are passed over."""
    import pyarrow as pa

    paths, labels = [], []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            found = sorted(_pictures_under(entry))
            paths += found
            labels += [entry.name] * len(found)
    if not paths:
        raise DlrunError(
            f"{folder}: no pictures in class folders",
            f"put the pictures of each class in a folder of its own; their names end in {', '.join(SUFFIXES)}",
            Exit.DATA,
        )
    table = pa.table({"image": pa.array(paths, pa.string()), "label": pa.array(labels, pa.string())})
    return Source(table, folder.name, folder)


def _pictures_under(folder: Path) -> Iterator[str]:
    """Paths of pictures, relative to the folder above."""
    for where, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.relpath(os.path.join(where, name), folder.parent)
